"""Remote: the servers of TVM's RPC tracker that measure for us."""

from __future__ import annotations

import re
import socket
import time
from importlib.util import find_spec

from tvmcnn.errors import ToolError
from tvmcnn.worker_process import last_line

WAIT = 10.0  # seconds for a tracker that has just been started to listen; TVM itself tries for 60


def servers(tracker: str, key: str) -> tuple[str, int, int]:
    """Host and port of a tracker, "HOST:PORT", and how many servers it has under a key.

    Raises ToolError for one that does not answer, or has none.
    """
    found = re.fullmatch(r"(\[[^\]]+\]|[^:]+):(\d+)", tracker)
    if not found:
        raise ToolError(f"the tracker '{tracker}' is not HOST:PORT")
    host, port = found[1].strip("[]"), int(found[2])
    for name in ("tornado", "cloudpickle"):
        if find_spec(name) is None:
            raise ToolError(f"TVM's RPC needs {name}: install it by pip install 'tvmcnn[tune]'")
    from tvm import rpc

    try:
        _reach(host, port)
        session = rpc.connect_tracker(host, port)
        summary = session.summary()
    except Exception as error:  # TVM's RPC raises what it likes
        raise ToolError(f"no RPC tracker answers at {tracker}: {last_line(error)}") from error
    keys = [str(entry["key"]).removeprefix("server:") for entry in summary["server_info"]]
    if not (count := keys.count(key)):
        known = ", ".join(sorted({*keys})) or "none"
        raise ToolError(f"the tracker at {tracker} has no server with the key '{key}'; its keys are: {known}")
    return host, port, count


def _reach(host: str, port: int) -> None:
    """Wait until something listens there. Raises OSError if nothing does in time."""
    end = time.monotonic() + WAIT
    while True:
        try:
            socket.create_connection((host, port), timeout=WAIT).close()
            return
        except ConnectionRefusedError:
            if time.monotonic() > end:
                raise
        time.sleep(0.2)
