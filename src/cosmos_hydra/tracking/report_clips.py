"""The sections of a report that show clips: previews, generated videos, hardest clips, data."""

from typing import Any

from cosmos_hydra.tracking.losses import skipping_clips, worst_clips
from cosmos_hydra.tracking.report_html import Html, Media, details, element, join, table
from cosmos_hydra.tracking.report_run import GeneratedVideo, RunRecord

MAX_CAPTIONS = 40
MAX_VIDEOS = 60
MAX_SKIPPING = 8
TIMES = "\N{MULTIPLICATION SIGN}"
CLIP_HEAD = ("Sample", "Video", "From frame", "Caption")


def preview_section(record: RunRecord, media: Media) -> Html:
    """Return the first and the last preview, as contact sheets and as players."""
    ends = list(dict.fromkeys(record.previews[:1] + record.previews[-1:]))
    if not ends:
        return Html()
    titles = {path.stem: f"Step {int(path.stem[5:]):,}" for path in ends}
    sheets = [media.picture(path, titles[path.stem]) for path in ends]
    groups = []
    for last in sorted(record.run.glob(f"previews/{ends[-1].stem}_*.mp4")):
        number = last.stem.rpartition("_")[2]
        clips = {
            last.with_name(f"{stem}_{number}.mp4"): title
            for stem, title in {"data": "Training clip", **titles}.items()
        }
        players = [media.video(path, title) for path, title in clips.items() if path.is_file()]
        groups.append(element("div", *players, class_="players"))
    return join(
        [
            element("p", "The same captions from the same noise, before and after training."),
            element("div", *sheets, class_="sheets"),
            element("div", *groups, class_="groups") if groups else "",
        ]
    )


def generated_section(record: RunRecord, media: Media) -> Html:
    """Return the generated videos, each beside the training clip it is most like."""
    videos = record.videos
    if not videos:
        return Html()
    pairs = [_pair(video, media) for video in videos[:MAX_VIDEOS]]
    compared = max((video.nearest["compared"] for video in videos if video.nearest), default=0)
    reading = (
        f"Each beside the most similar of {compared:,} training clips, by distance in the latent "
        f"space. A clip much closer to its neighbour than held-out clips are to theirs is a copy, "
        f"not a new one."
    )
    more = len(videos) - MAX_VIDEOS
    return join(
        [
            element("p", reading) if compared else "",
            element("div", *pairs, class_="groups"),
            element("p", f"{more:,} more lie in videos/.", class_="note") if more > 0 else "",
        ]
    )


def _pair(video: GeneratedVideo, media: Media) -> Html:
    players = [media.video(video.path, f"Generated, seed {video.facts['seed']}")]
    remark: Any = ""
    nearest, clip = video.nearest, video.path.with_suffix(".nearest.mp4")
    if nearest and clip.is_file():
        title = f"Nearest training clip: {nearest['video'] or nearest['sample']}"
        if nearest["start_frame"] is not None:
            title += f" from frame {nearest['start_frame']}"
        players.append(media.video(clip, title))
        text, usual = f"Distance {nearest['distance']:.3f}", nearest["held_out_distance"]
        if usual:
            share = nearest["distance"] / usual
            text += f", {share:.2g} times the {usual:.3f} that is typical of held-out clips"
        remark = element("p", f"{text}.", class_="note")
    prompt = element("h3", video.facts["prompt"])
    return element("article", prompt, element("div", *players, class_="players"), remark)


def hardest_section(record: RunRecord) -> Html:
    """Return the clips with the highest losses, and those that can have caused skipped steps."""
    parts: list[Any] = []
    worst = worst_clips(record.losses)
    if worst:
        reading = (
            "How many times the usual loss at the same noise level: the median of a clip's visits "
            "in the later half of training. Cuts, glitches and wrong captions show up here."
        )
        rows = [
            (f"{clip.ratio:.2f} {TIMES}", clip.visits, *_clip(record, clip.sample))
            for clip in worst
        ]
        head = ("Loss", "Visits", *CLIP_HEAD)
        parts += [element("p", reading), table(head, rows, numbers=(1, 4))]
    if record.skipped:
        reading = (
            "Steps whose loss or gradient was no finite number did not change the weights. Clips "
            "that can have caused it, the most frequent first:"
        )
        found = list(skipping_clips(record.losses, record.skipped).items())[:MAX_SKIPPING]
        rows = [(count, *_clip(record, sample)) for sample, count in found]
        parts += [element("h3", "Skipped steps"), element("p", reading)]
        parts += [table(("Skipped steps", *CLIP_HEAD), rows, numbers=(3,))]
    return join(parts)


def _clip(record: RunRecord, sample: str) -> tuple[Any, ...]:
    clip = record.clips.get(sample, {})
    return sample, clip.get("video"), clip.get("start_frame"), clip.get("caption")


def data_section(record: RunRecord, media: Media) -> Html:
    """Return what the samples were made from, their captions, and what they look like."""
    parts: list[Any] = []
    counts = record.counts
    if counts:
        fates = {fate: sum(counts[fate].values()) for fate in ("skipped", "failed")}
        parts.append(
            element(
                "p",
                f"Found {counts['found']:,} videos = kept {counts['kept']:,}"
                + "".join(f" + {fate} {number:,}" for fate, number in fates.items())
                + ".",
            )
        )
        reasons = [
            element("li", f"{fate} {number} {TIMES} {reason}")
            for fate in fates
            for reason, number in counts[fate].items()
        ]
        parts.append(element("ul", *reasons) if reasons else "")
    clips = ""
    if record.num_samples:
        train, held_out = record.num_samples
        clips = f"{train:,} clips to train on and {held_out:,} held out, "
    path = element("code", record.config["data"]["path"])
    parts.append(element("p", f"{clips}in " if clips else "Samples: ", path, "."))
    captions = record.captions
    if captions:
        number = max(len(captions), record.data.get("captions") or 0)
        listed = [element("li", caption or "(no caption)") for caption in captions[:MAX_CAPTIONS]]
        title = "One caption" if number == 1 else f"{number:,} different captions"
        title += f", the first {len(listed)}" if number > len(listed) else ""
        parts.append(details(title, element("ul", *listed)))
    sheet = record.run / "previews" / "data.png"
    if sheet.is_file():
        parts.append(media.picture(sheet, "Training clips as the network sees them, decoded again"))
    return join(parts)
