"""A warm process that forks one child per step, and can kill it after some seconds.

A step costs milliseconds, because torch and the model's libraries are loaded once, before the
fork. Commands come as JSON lines on standard input, answers go as JSON lines to standard output.
"""

import json
import os
import select
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from campaign_cases import POOL, answer_for, make_learner  # noqa: E402

from starlearn.campaign.campaign import Campaign  # noqa: E402
from starlearn.campaign.exchange import import_labels  # noqa: E402
from starlearn.campaign.failpoints import VARIABLE  # noqa: E402

BATCH, LABELS = 4, 12


def create(folder: Path, model: str, ack: Any) -> None:
    Campaign.create(folder, POOL, make_learner(model)).close()
    ack("created")


def query(folder: Path, model: str, ack: Any) -> None:
    with Campaign.open(folder) as campaign:
        ack(" ".join(item.id for item in campaign.query(BATCH)))


def label(folder: Path, model: str, ack: Any) -> None:
    """Say something about every item again and again; each uuid is new."""
    with Campaign.open(folder) as campaign:
        batch = campaign.batch()
        start = time.monotonic_ns()
        for number in range(LABELS):
            item = batch[number % len(batch)]
            uuid = f"{start}-{number}"
            campaign.label(item, answer_for(item.fields), "ann", uuid=uuid)
            ack(uuid)


def import_file(folder: Path, model: str, ack: Any) -> None:
    with Campaign.open(folder) as campaign:
        done = import_labels(campaign, folder.parent / "labels.csv", "imp")
        ack(f"imported {done.n_new + done.n_same}")


def teach(folder: Path, model: str, ack: Any) -> None:
    with Campaign.open(folder) as campaign:
        if campaign.status().state != "published":
            campaign.teach()
        ack(f"taught {campaign.status().adapter}")


STEPS = {f.__name__: f for f in (create, query, label, import_file, teach)}


def child(command: dict[str, Any], model: str, out: int) -> None:
    code = 1
    try:
        if command.get("failpoint"):
            os.environ[VARIABLE] = command["failpoint"]
        step = STEPS[command["step"]]
        step(Path(command["folder"]), model, lambda text: os.write(out, f"{text}\n".encode()))
        code = 0
    except BaseException:  # noqa: BLE001 - whatever it is, the child must not go on as a test
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def run(command: dict[str, Any], model: str) -> dict[str, Any]:
    read, write = os.pipe()
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        child(command, model, write)
    os.close(write)
    after = command.get("after")
    if after is not None:
        # The child's end of the pipe closes when it is done: then there is nobody to kill.
        watcher = os.pidfd_open(pid)
        select.select([watcher], [], [], after)
        os.close(watcher)
        os.kill(pid, signal.SIGKILL)
    acks = b""
    while part := os.read(read, 65536):
        acks += part
    os.close(read)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    # A line without its end was not acknowledged.
    return {
        "acks": acks.decode().split("\n")[:-1],
        "code": status,
        "seconds": time.monotonic() - began,
    }


def warm_up(model: str) -> None:
    """Go through everything once, so that no child has to import anything."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "campaign"
        for step in (create, query, label, teach):
            step(place, model, lambda text: None)


def main() -> None:
    import torch

    torch.set_num_threads(1)
    model = sys.argv[1]
    warm_up(model)
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line), model)), flush=True)


if __name__ == "__main__":
    main()
