"""What file descriptors and config.yaml leave for clients and peers; and the process's own bound, raised."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from mesh import config
from mesh.home import Home
from mesh.limits import Limits, limits_of
from mesh.settings import DescriptorSettings


def fitted(home: Home, descriptors: int, text: str = "") -> Limits:
    home.config.write_text(text)
    return limits_of(config.load(home, {}), descriptors)


@pytest.mark.parametrize("descriptors", [64, 256, 1024, 10_240, 20_000, 61_440, 1_048_576])
def test_whoever_connects_some_descriptors_are_left(home: Home, descriptors: int) -> None:
    found = fitted(home, descriptors, "connections: 1000000\n")
    clients = found.edge_server.front.crowd.all_max + found.edge.open_limit  # each may be carried to somebody
    peers = 2 * found.peer_server.front.crowd.all_max
    assert clients + peers <= descriptors - min(DescriptorSettings().kept, descriptors // 4)
    assert min(clients, peers) >= 2


def test_where_there_are_many_the_bounds_are_those_of_the_settings(home: Home) -> None:
    found = fitted(home, 1_048_576)
    assert (found.edge_server.front.crowd.all_max, found.edge.open_limit) == (16_384, 4096)
    assert found.edge_server.front.crowd.address_max == 512


def test_every_key_reaches_its_part(home: Home) -> None:
    found = fitted(
        home,
        20_000,
        "connections: 100\nconnections-per-address: 7\nrequests-per-address: 5\nqueue-limit: 3\n"
        "body-limit: 200 MB\nslow-client-timeout: 5\nrequest-timeout: 9\n",
    )
    crowd = found.edge_server.front.crowd
    assert (crowd.all_max, crowd.address_max, found.edge_server.front.untaken_s) == (100, 7, 5.0)
    assert (found.edge.open_address_limit, found.router.queue_limit, found.edge.request_timeout_s) == (5, 3, 9.0)
    assert found.edge.body_limit_bytes == 200 * 2**20 < found.door.body_limit_bytes
    assert found.edge.bodies_limit_bytes == found.door.bodies_limit_bytes == 800 * 2**20
    assert found.edge.bodies_address_bytes >= found.edge.body_limit_bytes


@pytest.mark.parametrize("hard", [300, 1500, 4096])
def test_a_process_takes_as_many_descriptors_as_it_may(hard: int) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < hard:
        pytest.skip("the system gives fewer")
    program = (
        f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (256, {hard}))\n"
        "from mesh.limits import descriptors, raise_descriptors\n"
        "print(raise_descriptors(), raise_descriptors(), descriptors())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(hard)] * 3
