"""The whole scenario on one computer: a relay, the gateways, the worker, and a network that is cut in the middle.

    python run.py                              50 gateways, 10,000 readings a second, one minute
    python run.py --rate 20 --seconds 4        1,000 readings a second, four seconds
    python run.py --tls                        all of it over TLS

It prints what became of the readings, and how much of one processor core the relay took. It fails when a reading is
missing, came changed or came out of order.
"""

import argparse
import asyncio
import json
import os
import re
import secrets
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from pathlib import Path

from network import Network

from trunkline.protocol import connection_string

FOLDER = Path(__file__).parent


def write_configuration(file: Path, gateways: int, tls: bool) -> dict[str, str]:
    """A declarative file with a hybrid connection for each gateway; returns the key of each rule."""
    keys = {"gateways": secrets.token_urlsafe(32), "worker": secrets.token_urlsafe(32)}
    mode = "development" if tls else "off"
    text = f'[node]\nport = 0\nadmin_port = 0\ndata = "data"\ntls = "{mode}"\n\n[[namespace]]\nname = "factory"\n'
    for name, right in (("gateways", "Listen"), ("worker", "Send")):
        text += f'\n[[namespace.rule]]\nname = "{name}"\nrights = ["{right}"]\nprimary_key = "{keys[name]}"\n'
    for number in range(1, gateways + 1):
        text += f'\n[[namespace.hybrid_connection]]\nname = "gateway-{number:02}"\n'
    file.touch(mode=0o600)
    file.write_text(text)
    return keys


async def start(*command: str, **environment: str) -> Process:
    """A program of its own; what it says on standard error is shown."""
    return await asyncio.create_subprocess_exec(
        sys.executable, *command, cwd=FOLDER, env={**os.environ, **environment}, stdout=PIPE
    )


async def start_relay(file: Path) -> tuple[Process, int]:
    """`trunkline serve`, and its port; what it logs is in `relay.log` beside the file."""
    log = file.parent / "relay.log"
    with log.open("wb") as output:
        command = (sys.executable, "-m", "trunkline", "serve", "--config", str(file))
        relay = await asyncio.create_subprocess_exec(*command, stderr=output)
    for _ in range(600):
        if ready := re.search(r"ready on \S+?:(\d+),", log.read_text()):
            return relay, int(ready[1])
        if relay.returncode is not None:
            break
        await asyncio.sleep(0.05)
    sys.exit(f"the relay did not start: {log.read_text()}")


def processor_seconds(process: Process) -> float:
    """What a process has used so far, with what the system did for it; Linux tells."""
    if not sys.platform.startswith("linux"):
        return float("nan")
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def run(options: argparse.Namespace, folder: Path) -> dict[str, object]:
    """The scenario; returns the report."""
    file = folder / "trunkline.toml"
    keys = write_configuration(file, options.gateways, options.tls)
    relay, port = await start_relay(file)
    tls = {"TRUNKLINE_CA_FILE": str(folder / "data" / "ca.pem")} if options.tls else {}
    started: list[Process] = [relay]
    try:
        async with Network(port) as network:

            def address(rule: str, port: int) -> str:
                return connection_string.build("127.0.0.1", port=port, key_name=rule, key=keys[rule])

            count = f"--gateways={options.gateways}"
            worker = await start("worker.py", count, TRUNKLINE_CONNECTION_STRING=address("worker", port), **tls)
            started.append(worker)
            gateways = await start(
                *("gateway.py", count, f"--rate={options.rate}", f"--seconds={options.seconds}"),
                TRUNKLINE_CONNECTION_STRING=address("gateways", network.port),
                **tls,
            )
            started.append(gateways)
            assert gateways.stdout is not None
            assert await gateways.stdout.readline() == b"online\n"
            before, began = processor_seconds(relay), time.monotonic()
            await asyncio.sleep(options.seconds / 2)
            network.cut()
            await asyncio.sleep(options.cut)
            network.mend()
            recorded = json.loads(await gateways.stdout.read())
            used, took = processor_seconds(relay) - before, time.monotonic() - began
            worker.terminate()
            stored, _ = await worker.communicate()
            share = {"seconds": round(took, 1), "share of a core": round(used / took, 3)}
            return {**recorded, **json.loads(stored), "relay": share}
    finally:
        for process in started:
            if process.returncode is None:
                process.kill()
            await process.wait()


def main() -> int:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--gateways", type=int, default=50)
    arguments.add_argument("--rate", type=float, default=200, help="readings a second, of each gateway")
    arguments.add_argument("--seconds", type=float, default=60, help="how long to read the sensors")
    arguments.add_argument("--cut", type=float, default=2, help="how long the network is away")
    arguments.add_argument("--tls", action="store_true", help="speak TLS")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = asyncio.run(run(options, Path(folder)))
    print(json.dumps(report, indent=2))
    is_whole = report["stored"] == report["recorded"]
    return 0 if is_whole and not report["missing"] and not report["reordered"] and not report["dropped"] else 1


if __name__ == "__main__":
    sys.exit(main())
