"""What kind of cable or radio an interface is: the faster one is dialled first."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Collection, Mapping
from enum import IntEnum
from pathlib import Path

PORTS = ("/usr/sbin/networksetup", "-listallhardwareports")
_PORTS_S = 5.0  # it takes some 50 ms
_NET = Path("/sys/class/net")
_TUNNEL_TYPES = (512, 768, 769, 776, 778, 823, 65534)  # linux/if_arp.h: PPP, IP in IP, SIT, GRE, no link layer
TUNNELS = ("utun", "tun", "wg", "tailscale", "ipsec", "ppp", "zt")  # reach other sites; take no multicast


class Kind(IntEnum):
    """Best first."""

    THUNDERBOLT = 0
    ETHERNET = 1
    WIFI = 2
    SLOW = 3  # tethered over a phone or Bluetooth
    VPN = 4


def kinds(names: Collection[str], platform: str = sys.platform) -> dict[str, Kind]:
    """Of these interfaces. On a Mac it runs a program: call it in a thread."""
    ports = _mac_ports() if platform == "darwin" else {}
    return {name: kind_of(name, ports, platform) for name in names}


def kind_of(name: str, ports: Mapping[str, Kind], platform: str = sys.platform, net: Path = _NET) -> Kind:
    """What nobody tells is Ethernet: neither preferred nor put off."""
    if name.startswith(TUNNELS):
        return Kind.VPN
    if platform != "linux":
        return ports.get(name, Kind.THUNDERBOLT if name == "bridge0" else Kind.ETHERNET)
    if name.startswith("thunderbolt"):  # the driver thunderbolt-net names them so
        return Kind.THUNDERBOLT
    folder = net / name
    if (folder / "wireless").exists() or (folder / "phy80211").exists():
        return Kind.WIFI
    try:
        kind = int((folder / "type").read_text())
    except (OSError, ValueError):
        return Kind.ETHERNET
    return Kind.VPN if kind in _TUNNEL_TYPES else Kind.ETHERNET


def ports_of(text: str) -> dict[str, Kind]:
    """From `networksetup -listallhardwareports`: a `Hardware Port:` and its `Device:`, in blocks."""
    found, port = dict[str, Kind](), ""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "Hardware Port":
            port = value.strip()
        elif key.strip() == "Device" and port and value.strip():
            found[value.strip()], port = _kind_of_port(port), ""
    return found


def _kind_of_port(port: str) -> Kind:
    name = port.lower()
    if "wi-fi" in name or "airport" in name:
        return Kind.WIFI
    if name.startswith("thunderbolt") and "ethernet" not in name:  # "Thunderbolt Ethernet" is an Ethernet adapter
        return Kind.THUNDERBOLT
    if any(word in name for word in ("iphone", "ipad", "bluetooth", "modem")):
        return Kind.SLOW
    return Kind.ETHERNET


def _mac_ports() -> dict[str, Kind]:
    try:
        done = subprocess.run(PORTS, capture_output=True, check=True, timeout=_PORTS_S)
    except (OSError, subprocess.SubprocessError):
        return {}
    return ports_of(done.stdout.decode(errors="replace"))  # people name their ports
