"""Videos found below a folder, and where each gets its caption from."""

import json
from pathlib import Path

import pytest
from raw_videos import small_config

from cosmos_hydra.config import DataConfig
from cosmos_hydra.data.sources.captions import read_table
from cosmos_hydra.data.sources.folder import find_episodes
from cosmos_hydra.errors import ConfigError, StageError


def data_of(root: Path, *overrides: str) -> DataConfig:
    return small_config(root, *overrides).data


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / "raw" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "raw" / name).write_bytes(b"not looked into here")


def captions(data: DataConfig) -> dict[str, tuple[str, str]]:
    return {e.name: (e.caption, e.caption_from) for e in find_episodes(data).episodes}


def test_videos_are_found_at_any_depth_sorted_by_name(tmp_path: Path) -> None:
    touch(tmp_path, "b.MP4", "a/c.webm", "a/deep/er/d.mkv", "notes.md", "state.npy", "._b.MP4")
    (tmp_path / "raw" / "folder.mp4").mkdir()
    found = find_episodes(data_of(tmp_path))
    assert [episode.name for episode in found.episodes] == ["a/c.webm", "a/deep/er/d.mkv", "b.MP4"]
    assert found.episodes[1].video == tmp_path / "raw" / "a/deep/er/d.mkv"
    assert (found.skipped, found.failed) == ({}, {})


def test_a_table_beats_a_text_file_beats_json_beats_the_prompt(tmp_path: Path) -> None:
    touch(tmp_path, "1.mp4", "2.mp4", "3.mp4", "4.mp4")
    raw = tmp_path / "raw"
    (tmp_path / "table.csv").write_text("video,caption\n1.mp4,from the table\n")
    for name in ("1", "2"):
        (raw / f"{name}.txt").write_text("  from the text file \n")
    for name in ("1", "2", "3"):
        (raw / f"{name}.json").write_text(json.dumps({"caption": "from json"}))
    assert captions(data_of(tmp_path, f"data.captions={tmp_path / 'table.csv'}")) == {
        "1.mp4": ("from the table", "table"),
        "2.mp4": ("from the text file", "sidecar"),
        "3.mp4": ("from json", "sidecar"),
        "4.mp4": ("a robot moves", "data.prompt"),
    }


def test_an_empty_text_file_and_json_without_a_caption_leave_it_to_the_next(tmp_path: Path) -> None:
    touch(tmp_path, "1.mp4", "2.mp4")
    (tmp_path / "raw" / "1.txt").write_text("\n")
    (tmp_path / "raw" / "1.json").write_text('{"texts": ["pick up pot 50", "second"]}')
    (tmp_path / "raw" / "2.json").write_text('{"fps": 3}')
    assert captions(data_of(tmp_path)) == {
        "1.mp4": ("pick up pot 50", "sidecar"),
        "2.mp4": ("a robot moves", "data.prompt"),
    }


def test_a_video_without_a_caption_is_skipped_and_a_broken_caption_file_fails(
    tmp_path: Path,
) -> None:
    touch(tmp_path, "1.mp4", "2.mp4", "3.mp4", "4.mp4")
    (tmp_path / "raw" / "2.json").write_text("{")
    (tmp_path / "raw" / "3.txt").write_bytes(b"\xff\xfe\xff")
    (tmp_path / "raw" / "4.txt").write_text("yes")
    found = find_episodes(data_of(tmp_path, "data.prompt=null"))
    assert [episode.name for episode in found.episodes] == ["4.mp4"]
    assert found.skipped == {"1.mp4": "no caption: no .txt or .json beside it, no data.prompt"}
    assert sorted(found.failed) == ["2.mp4", "3.mp4"]
    assert found.failed["2.mp4"].startswith("caption file cannot be read (")


TABLES = {
    "a.csv": 'video,caption\n1.mp4,"lifts, then ""turns"""\nsub/2.mp4,two\n',
    "of_excel.csv": '\ufeffpath,text\n./1.mp4,"lifts, then ""turns"""\nsub/2.mp4,two\n',
    "a.jsonl": '{"video": "1.mp4", "caption": "lifts, then \\"turns\\""}\n\n'
    '{"video_path": "sub/2.mp4", "texts": ["two"]}\n',
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_csv_or_jsonl(name: str, tmp_path: Path) -> None:
    touch(tmp_path, "1.mp4", "sub/2.mp4")
    (tmp_path / name).write_text(TABLES[name], encoding="utf-8")
    assert captions(data_of(tmp_path, f"data.captions={tmp_path / name}")) == {
        "1.mp4": ('lifts, then "turns"', "table"),
        "sub/2.mp4": ("two", "table"),
    }


def test_a_row_for_a_missing_video_is_counted_as_failed(tmp_path: Path) -> None:
    touch(tmp_path, "1.mp4")
    table = tmp_path / "table.csv"
    table.write_text("video,caption\n1.mp4,one\ngone.mp4,two\n")
    found = find_episodes(data_of(tmp_path, f"data.captions={table}"))
    assert found.failed == {"gone.mp4": f"listed in {table} but not below data.source"}


@pytest.mark.parametrize("video", ["../other.mp4", "/etc/passwd", "sub/../../other.mp4"])
def test_a_row_that_leaves_the_folder_is_refused(video: str, tmp_path: Path) -> None:
    table = tmp_path / "table.jsonl"
    rows = [{"video": "1.mp4", "caption": "one"}, {"video": video, "caption": "two"}]
    table.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ConfigError) as caught:
        read_table(str(table), tmp_path / "raw")
    assert str(caught.value) == (
        f"data.captions={table} row 2 names {video}, outside data.source={tmp_path / 'raw'}"
    )
    assert caught.value.exit_code == 2


BAD_TABLES = {
    "no_column.csv": ("name,words\n1.mp4,one\n", "row 1 lacks a video or a caption; columns: "),
    "empty_cell.csv": ("video,caption\n1.mp4,one\n2.mp4,\n", "row 2 lacks a video or a caption"),
    "plain_text.jsonl": ('"1.mp4"\n', "row 1 lacks a video or a caption"),
    "broken.jsonl": ('{"video": \n', "cannot be read (Expecting value"),
    "latin.csv": ("video,caption\n1.mp4,\udcff\n", "cannot be read ('utf-8' codec"),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_a_bad_table_is_an_error_that_names_the_place(name: str, tmp_path: Path) -> None:
    content, problem = BAD_TABLES[name]
    table = tmp_path / name
    table.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError) as caught:
        read_table(str(table), tmp_path / "raw")
    assert str(caught.value).startswith(f"data.captions={table} {problem}")


def test_a_missing_table_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_table("gone.csv", tmp_path)
    assert str(caught.value) == (
        "data.captions=gone.csv is no file; a CSV or JSONL table is expected"
    )


def test_a_missing_or_empty_folder_is_an_error(tmp_path: Path) -> None:
    data = data_of(tmp_path)
    with pytest.raises(StageError) as caught:
        find_episodes(data)
    assert str(caught.value) == (
        f"data.source={tmp_path / 'raw'} is no folder; set it to your videos"
    )
    touch(tmp_path, "notes.md")
    with pytest.raises(StageError) as caught:
        find_episodes(data)
    assert str(caught.value) == (
        f"data.source={tmp_path / 'raw'} holds no videos; looked for .avi .m4v .mkv .mov .mp4 .webm"
    )
    assert caught.value.exit_code == 1
