"""Who sends this node what it cannot read: counted by sender, so that people hear of it once. Pure."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from mesh.settings import NoiseSettings

_WHAT = {
    "other_version": "speaks another protocol: update mlx-stack on one of the two",
    "unknown_kind": "says things this version does not know, which is harmless: update mlx-stack here",
    "no_hello": "opens links and does not say who it is",
}
_GARBAGE = "sends what is no message of a mesh: another program that uses this port, or a defect there"


@dataclass(slots=True)
class _Sender:
    last: float
    code: str
    count: int = 0  # without a pause of `quiet_s`
    said_at: float = float("-inf")


class Noise:
    """`heard` each datagram, frame or connection that could not be used. Times in seconds."""

    def __init__(self, settings: NoiseSettings | None = None) -> None:
        self._settings = settings or NoiseSettings()
        self._senders: OrderedDict[str, _Sender] = OrderedDict()

    def heard(self, address: str, code: str, now: float) -> str:
        """`code` is WireError's. Returns the sentence for the log, once an hour at most; else ""."""
        s, sender = self._settings, self._senders.get(address)
        if sender is None:
            sender = self._senders[address] = _Sender(now, code)
            if len(self._senders) > s.senders_max:
                self._senders.popitem(last=False)
        self._senders.move_to_end(address)
        if now - sender.last > s.quiet_s:
            sender.code, sender.count = code, 0
        if sender.code in _WHAT:  # garbage is the worst that can be said of it
            sender.code = code
        sender.last, sender.count = now, sender.count + 1
        if not self._annoying(sender, now) or now - sender.said_at < s.say_every_s:
            return ""
        sender.said_at = now
        return self._said(address, sender)

    def notes(self, now: float) -> list[str]:
        """One line for each sender that goes on; a few at most."""
        loud = [(a, s) for a, s in reversed(self._senders.items()) if self._annoying(s, now)]
        more = len(loud) - self._settings.shown_max
        lines = [self._said(address, sender) for address, sender in loud[: self._settings.shown_max]]
        return [*lines, f"and {more} more machines send what this node cannot read"] if more > 0 else lines

    def _annoying(self, sender: _Sender, now: float) -> bool:
        return sender.count >= self._settings.count_min and now - sender.last <= self._settings.quiet_s

    @staticmethod
    def _said(address: str, sender: _Sender) -> str:
        return f"{address} {_WHAT.get(sender.code, _GARBAGE)}; it is ignored"
