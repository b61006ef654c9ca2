"""How many open files, so connections, this process may have."""

from __future__ import annotations

import contextlib
import resource

import click

# What a system without any hard limit is asked for.
_PLENTY = 2**20


def allow_descriptors(count: int) -> None:
    """Have this process allowed so many open files, if it is not.

    Raises:
      click.UsageError: the system does not allow them.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= count:
        return
    if hard == resource.RLIM_INFINITY or hard >= count:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
        except (OSError, ValueError):  # macOS has yet another limit
            pass
        else:
            return
    allowed = soft if hard == resource.RLIM_INFINITY else hard
    raise click.UsageError(
        f"so many connections need {count:,} open files, and this process may have {allowed:,}: "
        "give fewer --connections, or have the limit raised (ulimit -Hn)"
    )


def allow_all_descriptors() -> None:
    """Have this process allowed as many open files as the system lets it have, if it does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY:
        wanted = max(soft, _PLENTY) if hard == resource.RLIM_INFINITY else hard
        with contextlib.suppress(OSError, ValueError):  # macOS has yet another limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
