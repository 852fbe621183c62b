"""Two sites in the lab: a LAN each, and between their routers a slow line that can be cut."""

from __future__ import annotations

import time
from collections.abc import Sequence

from tests.lab.netlab import Lab

LINE = 2  # the LAN between the two routers; 0 and 1 are the sites'
_CUT = "table inet line {\n chain f { type filter hook forward priority 0; policy drop; }\n}\n"


class SiteLab(Lab):
    """`first` Macs at one site, `second` at the other, mac1 onwards; the last two nodes are the routers. Multicast does
    not cross the line. `delay_ms` is added in each direction."""

    def __init__(self, first: int, second: int, *, name: str, delay_ms: float = 40.0, subnet: str = "10.77") -> None:
        super().__init__(first + second + 2, lans=3, name=name, subnet=subnet)
        self._delay_ms = delay_ms
        self.sites = (self.nodes[:first], self.nodes[first : first + second])
        self.routers = (self.nodes[-2], self.nodes[-1])

    def lans_of(self, node: str) -> Sequence[int]:
        if node in self.routers:
            return (self.routers.index(node), LINE)
        return (self.site_of(node),)

    def site_of(self, node: str) -> int:
        return 0 if node in self.sites[0] else 1

    def ip(self, node: str, lan: int | None = None) -> str:
        return super().ip(node, self.lans_of(node)[0] if lan is None else lan)

    def up(self) -> SiteLab:
        super().up()
        try:
            for site, router in enumerate(self.routers):
                self.run(router, ["sysctl", "-qw", "net.ipv4.ip_forward=1"], check=True)
                there = self.ip(self.routers[1 - site], LINE)
                self._route(router, f"{self.subnet}.{1 - site}.0/24", there)
                for mac in self.sites[site]:
                    self._route(mac, "default", self.ip(router))
            self.shape(self.routers[0], delay_ms=self._delay_ms, lan=LINE)
        except BaseException:
            self.down()
            raise
        return self

    def __enter__(self) -> SiteLab:
        return self.up()

    def _route(self, node: str, to: str, via: str) -> None:
        self.run(node, ["ip", "route", "add", to, "via", via], check=True)

    def cut_line(self) -> float:
        """Nothing crosses, and nothing says so. Returns when (monotonic)."""
        for router in self.routers:
            self.run(router, ["nft", "-f", "-"], input=_CUT, text=True, check=True)
        return time.monotonic()

    def mend_line(self) -> float:
        at = time.monotonic()
        for router in self.routers:
            self.run(router, ["nft", "delete", "table", "inet", "line"], check=True)
        return at
