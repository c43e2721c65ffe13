"""Logs of searches: whole records, a torn last line, and everything else told with its line."""

import os

import pytest

from mindmoe.config.schema import Section
from mindmoe.host.errors import UserError
from mindmoe.lab.tune.log import read_log


class Record(Section):
    step: int
    settings: dict[str, float]


GOOD = b'{"step": 1, "settings": {"a": 2}}\n'


def test_records_are_read_and_a_torn_last_line_is_left_out_and_cut(tmp_path):
    log = tmp_path / "log.jsonl"
    assert read_log(log, Record) == []
    log.write_bytes(GOOD + GOOD + b'{"step": 2, "sett')
    assert [record.settings for record in read_log(log, Record)] == [{"a": 2.0}] * 2
    assert not log.read_bytes().endswith(b"\n")
    assert len(read_log(log, Record, cut=True)) == 2 and log.read_bytes() == GOOD + GOOD


@pytest.mark.parametrize(
    "line",
    [b"{}", b"[]", b"x", b"\x00", b"\xff\xfe", b'{"step": true, "settings": {}}', b'{"step": 1e999, "settings": {}}']
    + [b'{"step": 1, "settings": {"a": "b"}}', b'{"step": 1, "step": 1, "settings": {}}', b"[" * 9999, b"9" * 9999]
    + [GOOD[:-2] + b', "more\x1b[2J": 1}', b'{"step": 1, "settings": {"\\ud800": 1}}'],
)
def test_a_line_that_is_no_record_is_told_with_its_number(tmp_path, line):
    log = tmp_path / "log.jsonl"
    log.write_bytes(GOOD + line + b"\n" + GOOD)
    with pytest.raises(UserError, match=r"log\.jsonl:2: ") as caught:
        read_log(log, Record)
    assert str(caught.value).isprintable()


def test_what_is_no_file_of_ours_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    for name in ("pipe", "link"):
        with pytest.raises(UserError, match=name):
            read_log(tmp_path / name, Record)
