"""Command line flags of a model server: ours, and what the user adds or changes in `extra-args`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence


def value_of(arguments: Sequence[str], flag: str) -> str | None:
    """The value that `arguments` give `flag`, as `--flag value` or `--flag=value`, the last one if several do."""
    found = None
    for position, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name == flag:
            found = value if equals else next(iter(arguments[position + 1 : position + 2]), None)
    return found


def number_of(arguments: Sequence[str], flag: str) -> int | None:
    """The same, where it is a whole number."""
    value = value_of(arguments, flag)
    return int(value) if value is not None and value.isdecimal() else None


def merged(ours: Mapping[str, object], extra: Sequence[str], fixed: Collection[str] = ()) -> list[str]:
    """Each flag once: ours, but the user's where both give one, except `fixed` flags, which stay ours."""
    given = {argument.partition("=")[0] for argument in extra if argument.startswith("--")}
    words = [str(word) for flag, value in ours.items() if flag in fixed or flag not in given for word in (flag, value)]
    skip = False
    for argument in extra:
        name, equals, _ = argument.partition("=")
        if skip:
            skip = False
        elif name in fixed:
            skip = not equals
        else:
            words.append(argument)
    return words
