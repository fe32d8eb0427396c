"""The fields of the launchers, set as `hydra.launcher.nodes=2`.

Hydra imports this module whenever it starts: nothing slow here.
"""

from dataclasses import dataclass, field

from hydra.core.config_store import ConfigStore

PACKAGE = "hydra_plugins.cosmos_launchers"


@dataclass
class TorchrunLauncherConf:
    _target_: str = f"{PACKAGE}.torchrun.TorchrunLauncher"
    # ranks on this machine; auto = one for each GPU, or one without any
    nproc_per_node: str = "auto"
    # ranks whose output is shown here too; all of them have a file logs/rank_07.log
    tee_ranks: list[int] = field(default_factory=lambda: [0])
    # s that ranks have to save and leave after a signal, once the first of them has left
    stop_s: int = 60
    # true = print what would be started, and start nothing
    dry_run: bool = False


@dataclass
class SlurmLauncherConf:
    _target_: str = f"{PACKAGE}.slurm.SlurmLauncher"
    # nodes of a job
    nodes: int = 1
    # GPUs of a node, one rank each; 0 = ranks on the CPU, as many as nproc_per_node
    gpus_per_node: int = 8
    # ranks on a node; auto = gpus_per_node, or one without any
    nproc_per_node: str = "auto"
    # cores of a node for all its ranks; null = the cluster's default
    cpus_per_task: int | None = None
    # main memory of a node, GB; null = the cluster's default
    mem_gb: float | None = None
    # time limit of a job, minutes
    time_min: int = 240
    # partition; null = the cluster's default, and so for the next four
    partition: str | None = None
    # account that is charged
    account: str | None = None
    # quality of service
    qos: str | None = None
    # features that nodes must have
    constraint: str | None = None
    # reservation
    reservation: str | None = None
    # nodes not to use; null = none
    exclude: str | None = None
    # jobs of a sweep that run at a time
    array_parallelism: int = 16
    # shell lines of the batch script before srun, such as `module load`; only typed, never from a
    # file of configs
    setup: list[str] = field(default_factory=list)
    # arguments of srun, one each; only typed
    srun_args: list[str] = field(default_factory=lambda: ["--kill-on-bad-exit=1"])
    # options of sbatch that have no field here, without dashes; only typed
    additional: dict[str, str] = field(default_factory=dict)
    # image for pyxis (--container-image); null = no container; only typed
    container_image: str | None = None
    # folders seen in it, host:inside, besides the working directory; only typed
    container_mounts: list[str] = field(default_factory=list)
    # words of the command that is Python on the nodes; [] = this interpreter; only typed
    python: list[str] = field(default_factory=list)
    # s between the signal that asks to save and the time limit: more than one step plus one save
    signal_lead_s: int = 120
    # times that a preempted or timed-out job is put back into the queue
    max_requeues: int = 3
    # port on the first node; null = 20000 + job id % 10000
    port: int | None = None
    # s that nodes wait for each other at the start
    timeout_s: int = 600
    # s that ranks have to save and leave after a signal, once the first of them has left
    stop_s: int = 60
    # s between looks at the queue
    poll_s: float = 10.0
    # s after which a job that the queue no longer runs, and that has no result, is lost
    lost_s: float = 20.0
    # true = print the batch script and the command of a rank, and submit nothing
    dry_run: bool = False


for name, conf in (("cosmos_torchrun", TorchrunLauncherConf), ("cosmos_slurm", SlurmLauncherConf)):
    ConfigStore.instance().store(
        group="hydra/launcher", name=name, node=conf, provider="cosmos_hydra"
    )
