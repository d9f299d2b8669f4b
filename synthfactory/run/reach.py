"""Does anything answer at a cluster's address? Asked before anything is written: Ray itself tries for many minutes."""

from __future__ import annotations

import socket

from synthfactory.spec.errors import InputError

TIMEOUT_SEC = 10.0


def check_reachable(address: str) -> None:
    """InputError where HOST:PORT (ray://HOST:PORT) takes no connection within 10 s. Other forms, such as auto, are left to Ray."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not (host and colon and port.isdigit()):
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), TIMEOUT_SEC).close()
    except (OSError, OverflowError, UnicodeError) as error:
        raise InputError(
            f"--address {address}: no Ray cluster answers there ({error}); start one with `ray start --head`"
        ) from None
