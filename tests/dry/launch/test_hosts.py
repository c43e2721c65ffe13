"""Which texts name a node, and which of them name the same one."""

import re

import pytest

from mindmoe.launch.hosts import read_hosts


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "names no host"),
        ("a\na\n", "stands in line 1 already"),
        ("a address=10.0.0.1\nb address=10.0.0.1\n", "stands in line 1 already"),
        ("a slots=8\n", "'slots=8' is no setting"),
        ("-oProxyCommand=x\n", "neither a host name nor an IP address"),
        ("a address=x;y\n", "neither a host name nor an IP address"),
        ("a b\n", "'b' is no setting"),
        ("N1\nn1\n", "n1 stands in line 1 already"),
        ("a address=10.0.0.1\n10.0.0.1\n", "stands in line 1 already"),
        ("a address=FE80::1\nb address=fe80:0::1\n", "stands in line 1 already"),
        ("a address=::ffff:10.0.0.1\n10.0.0.1\n", "stands in line 1 already"),
        *(
            (f"{bad}\n", "neither a host name nor an IP address")
            for bad in (
                "10.0.0.256",
                "10.0.0",
                "1",
                "010.0.0.1",
                "0x7f.1",
                "1.2.3.4.5",
                "a..b",
                "a-",
                "-a",
                "a.",
                "a" * 64,
                ".".join(["a" * 60] * 5),
                "fe80::1%eth0;x",
                "1::2::3",
                "\u00e9",
                "a\x01b",
            )
        ),
    ],
)
def test_bad_hosts_files_are_refused(tmp_path, text, expected):
    path = tmp_path / "hosts"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(expected)):
        read_hosts(path)


@pytest.mark.parametrize(
    "name", ["gpu_node01", "_a", "node-1.rack_2.site", "10.0.0.255", "node.1", "1a", "fe80::1%eth0", "::1"]
)
def test_hosts_are_named_as_sites_name_them(tmp_path, name):
    (tmp_path / "hosts").write_text(f"{name}\nother address=10.9.9.9\n")
    assert [host.name for host in read_hosts(tmp_path / "hosts")] == [name, "other"]
