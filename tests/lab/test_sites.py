"""Macs at two places: joined by one invite, torn apart when the line is cut, one mesh again when it is back."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from mesh.client import MeshClientError
from tests.lab import conftest
from tests.lab.macs import agreed, wait_until
from tests.lab.site_trials import Sites, two_sites

Figure = Callable[[str, float], None]


@contextmanager
def two(first: int, second: int, priorities: Sequence[int]) -> Iterator[Sites]:
    """two_sites, whose logs are shown when the test fails."""
    with two_sites(first, second, priorities=priorities) as sites:
        conftest._macs.extend(sites.macs)
        try:
            yield sites
        finally:
            conftest._macs.clear()


@pytest.mark.parametrize(("first", "second"), [(1, 1), (2, 2)])
def test_each_site_serves_while_the_line_is_cut_and_they_are_one_mesh_when_it_is_back(
    first: int, second: int, figure: Figure
) -> None:
    here = {f"mac{n + 1}" for n in range(first)}
    with two(first, second, priorities=[*[100] * first, *[200] * second]) as sites:
        sites.start()
        figure(f"{first}+{second}: from one invite's use until all agree", sites.join())
        wait_until(lambda: agreed(sites.macs) and sites.macs[-1].coordinator in here, "the side that added decides")
        trial = sites.trial()
        figure(f"{first}+{second}: from the cut until each site rules itself", trial.split_s)
        figure(f"{first}+{second}: from the line's return until one mesh", trial.joined_s)
        figure(f"{first}+{second}: the slowest answer meanwhile", max(trial.slowest_s))
        assert trial.failed == ((), ())
        assert trial.alone == (first == 1, second == 1)
        wait_until(
            lambda: agreed(sites.macs) and sites.macs[-1].coordinator in here,
            "the side that added decides again",
            120.0,
        )


def test_a_name_of_the_tailnet_a_restart_a_higher_priority_and_a_removal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figure: Figure
) -> None:
    with two(1, 1, priorities=(100, 200)) as sites:
        mac1, mac2 = sites.macs
        a_tailscale_program(tmp_path, monkeypatch, mac2=mac2.ip)
        sites.start()
        sites.join()
        added = mac1.client.add("mac2.tailnet:4000")  # no resolver answers here: DNS is given up after 5 s
        assert (added["name"], added["far"], added["via"]) == ("mac2", True, "tailscale")
        wait_until(lambda: agreed(sites.macs), "one mesh")
        wait_until(lambda: mac1.coordinator == "mac1", "the side that added decides, whatever the priority", 120.0)
        [running] = mac1.client.tailnet()
        assert (running.name, running.added) == ("mac2", True)

        mac1.stop()
        wait_until(lambda: mac2.coordinator == "mac2", "the other one goes on")
        mac1.start()
        figure(
            "from a restart of the adding Mac until both agree", wait_until(lambda: agreed(sites.macs), "both agree")
        )
        handed_s = wait_until(lambda: agreed(sites.macs) and mac2.coordinator == "mac1", "it decides again", 120.0)
        figure("and until it coordinates again", handed_s)
        wait_until(lambda: mac1.node("mac2").via == "tailscale", "it says how it knows the other")
        assert mac1.node("mac2").far

        assert mac1.client.remove("mac2") == "mac2"
        wait_until(lambda: mac2.coordinator == "mac2" and mac1.coordinator == "mac1", "two meshes")
        assert not yaml.safe_load((mac1.home / "config.yaml").read_text()).get("mesh-peers")
        mac1.stop()
        mac1.start()
        wait_until(lambda: mac1.coordinator == "mac1", "it is up again")
        assert mac2.metric("mlx_mesh_links") == 0.0
        with pytest.raises(MeshClientError, match="removed"):
            sites.join()
        wait_until(lambda: mac1.node("mac2").state == "waiting", "it asks to be let back in")
        mac1.client.accept("mac2")
        wait_until(lambda: agreed(sites.macs), "a person has let it back in", 120.0)


def a_tailscale_program(folder: Path, monkeypatch: pytest.MonkeyPatch, **machines: str) -> None:
    """Tailscale as these Macs have it: the program only, and a tailnet of these machines."""
    peers = {name: {"DNSName": f"{name}.tail1.ts.net.", "HostName": name, "TailscaleIPs": [ip], "Online": True}
             for name, ip in machines.items()}  # fmt: skip
    status = {"BackendState": "Running", "Peer": peers, "CurrentTailnet": {"MagicDNSSuffix": "tail1.ts.net"}}
    (folder / "status.json").write_text(json.dumps(status))
    program = folder / "tailscale"
    program.write_text(f"#!/bin/sh\nexec cat {folder}/status.json\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
