"""Answers per second of the labelling page, and its response times, by events and batch size.

    python benchmarks/bench_label_server.py
    python benchmarks/bench_label_server.py --other FOLDER   # paired with the code of a checkout

Each annotator is a connection that sends an answer, follows the redirect, reads the next page, and
repeats, without a pause. The server is a process of its own, with all checks of integrity. The
campaign has answers of an earlier round, and an open batch that needs one answer per item.
An answer counts after its page was read, and all of them are looked for in the label store. On a
busy machine, `server_cpu_ms` says more than the rate: the server's CPU time per answer and page.
With `--other`, both versions of the code take turns, and `ratio` compares them within a turn.
"""

import argparse
import asyncio
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from measuring import COMMON, RESULTS, common, parser_of, write_row

HERE = Path(__file__).resolve().parent
FIELDS = [
    *COMMON, "code", "events", "batch", "annotators", "disk", "turn", "answers", "seconds",
    "answers_per_second", "respond_ms_median", "respond_ms_p99", "view_ms_median", "view_ms_p99",
    "slowest_ms", "server_cpu_ms", "lost", "ratio", "cpu_ratio",
]  # fmt: skip
COMPARED = ("answers_per_second", "server_cpu_ms")
FORM = re.compile(r'name="item" value="([^"]+)">\s*<input type="hidden" name="seen" value="(\d+)"')


def make_campaign(folder: Path, n_events: int, n_items: int) -> None:
    """Make a campaign with the events of an earlier round and an open batch; no model is run."""
    from starlearn.campaign import events, rounds
    from starlearn.campaign.campaign import Campaign
    from starlearn.campaign.events import Entry
    from starlearn.learner.estimator import STARLearner
    from starlearn.tasks import ChoiceTask

    task = ChoiceTask("{question}", choices=["Ann", "Bob", "Cid"])
    pool = [{"question": f"Ann then Bob then item {row} ?"} for row in range(2 * n_items)]
    with Campaign.create(folder, pool, STARLearner(task=task, random_state=0)) as campaign:
        store, table = campaign.store, campaign.snapshot()
        items = list(zip(table["id"].to_pylist(), table["content"].to_pylist(), strict=True))
        for number, some in enumerate((items[:n_items], items[n_items:]), start=1):
            rounds.begin(store, n_items, {})
            batch = [rounds.Issued(*item, place, 0.5, "why") for place, item in enumerate(some)]
            rounds.issue(store, number, batch, {})
            if number == 1:
                entries = [
                    Entry("label", some[n % n_items][0], f"ann{n % 50}", answer="Ann", ms=1000)
                    for n in range(n_events)
                ]
                events.append(store, entries, 1)
                done = {"state": "published", "adapter": "none", "manifest": "none"}
                rounds.change(store, number, **done)


def serve(folder: Path) -> None:
    """Serve a campaign's page; the first line of the output has the port and the token."""
    from starlearn.campaign.campaign import Campaign
    from starlearn.campaign.web.access import AccessTokens
    from starlearn.campaign.web.routes import make_app
    from starlearn.campaign.web.service import AnnotationService
    from starlearn.campaign.web.serving import listening, make_server

    with Campaign.open(folder) as campaign, listening(0) as listener:
        tokens = AccessTokens(listener.getsockname()[1])
        found = {
            "pid": os.getpid(),
            "port": listener.getsockname()[1],
            "token": tokens.token,
        }
        print(json.dumps(found), flush=True)
        make_server(make_app(AnnotationService(campaign), tokens)).run(sockets=[listener])


def count(folder: Path) -> None:
    """Print the number of events in a label store."""
    from starlearn.campaign import events
    from starlearn.campaign.campaign import Campaign

    with Campaign.open(folder) as campaign:
        print(len(events.events(campaign.store)))


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process and all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Annotator:
    """One connection of one annotator."""

    def __init__(self, server: dict[str, Any], name: str) -> None:
        self.server, self.name = server, name
        self.cookies = [f"starlearn-name={name}"]
        self.respond_ms: list[float] = []
        self.view_ms: list[float] = []

    async def label(self, until: float) -> None:
        """Answer item after item until a time, at least one, or until no item is left."""
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.server["port"])
        await self.request("GET", f"/?token={self.server['token']}", "")
        page = await self.request("GET", "/", "")
        while not self.respond_ms or time.perf_counter() < until:
            found = FORM.search(page)
            if found is None:
                break
            item, seen = found.groups()
            form = f"kind=label&annotator={self.name}&item={item}&seen={seen}&ms=1&choice=0%3AAnn"
            began = time.perf_counter()
            await self.request("POST", "/respond", form)
            answered = time.perf_counter()
            page = await self.request("GET", "/", "")
            self.respond_ms.append(1e3 * (answered - began))
            self.view_ms.append(1e3 * (time.perf_counter() - answered))
        self.writer.close()

    async def request(self, method: str, path: str, body: str) -> str:
        """Send a request and return the body of the response."""
        host = f"127.0.0.1:{self.server['port']}"
        self.writer.write(
            f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\n"
            f"Cookie: {'; '.join(self.cookies)}\r\n"
            "Content-Type: application/x-www-form-urlencoded\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        status = int(head.split()[1])
        self.cookies += re.findall(r"set-cookie: ([^;\r]+)", head)
        length = re.search(r"content-length: (\d+)", head.lower())
        content = await self.reader.readexactly(int(length[1]) if length else 0)
        if status not in (200, 303):
            raise RuntimeError(f"{method} {path}: {status} {content.decode()[:2000]}")
        return content.decode()


async def label(server: dict[str, Any], n: int, seconds: float) -> tuple[list[Annotator], float]:
    """Let n annotators label at the same time; return them and the seconds that passed."""
    annotators = [Annotator(server, f"ann{number}") for number in range(n)]
    began = time.perf_counter()
    await asyncio.gather(*(annotator.label(began + seconds) for annotator in annotators))
    return annotators, time.perf_counter() - began


def run(code: Path, mode: str, *arguments: object) -> list[str]:
    """Return the command that runs this file with the package of a checkout."""
    paths = f"{code}:{code / 'kernels'}:{HERE}"
    program = [sys.executable, str(HERE / Path(__file__).name), "--mode", mode]
    return ["env", f"PYTHONPATH={paths}", *program, *map(str, arguments)]


@contextmanager
def served(code: Path, folder: Path) -> Iterator[dict[str, Any]]:
    """Serve a copy of a campaign with the package of a checkout."""
    command = run(code, "serve", "--folder", folder)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())
        process.terminate()


def measure(code: Path, campaign: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Measure one turn of one version of the code on a copy of its campaign."""
    copy = campaign.with_name("copy")
    shutil.copytree(campaign, copy)
    try:
        with served(code, copy) as server:
            began = cpu_seconds(server["pid"])
            annotators, seconds = asyncio.run(label(server, args.annotators, args.seconds))
            cpu = cpu_seconds(server["pid"]) - began
        stored = subprocess.check_output(run(code, "count", "--folder", copy), text=True)
    finally:
        shutil.rmtree(copy)
    respond = sorted(ms for annotator in annotators for ms in annotator.respond_ms)
    view = sorted(ms for annotator in annotators for ms in annotator.view_ms)
    return {
        "answers": len(respond),
        "seconds": f"{seconds:.2f}",
        "answers_per_second": f"{len(respond) / seconds:.2f}",
        "respond_ms_median": f"{statistics.median(respond):.1f}",
        "respond_ms_p99": f"{respond[int(0.99 * len(respond))]:.1f}",
        "view_ms_median": f"{statistics.median(view):.1f}",
        "view_ms_p99": f"{view[int(0.99 * len(view))]:.1f}",
        "slowest_ms": f"{max(respond[-1], view[-1]):.1f}",
        "server_cpu_ms": f"{1e3 * cpu / len(respond):.2f}",
        "lost": len(respond) - (int(stored) - args.n_events),
    }


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = parser_of(__doc__)
    parser.add_argument("--events", type=int, nargs="+", default=[0, 1_000, 10_000, 50_000])
    parser.add_argument("--batch", type=int, default=3_000)
    parser.add_argument("--annotators", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--other", type=Path, help="a checkout whose code takes turns with this")
    parser.add_argument("--disk", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--out", type=Path, default=RESULTS / "label_server.csv")
    parser.add_argument("--mode", choices=["bench", "make", "serve", "count"], default="bench")
    parser.add_argument("--folder", type=Path, help="of the campaign, for the other modes")
    return parser.parse_args(arguments)


def bench(args: argparse.Namespace) -> None:
    """Measure every number of events; both versions of the code take turns."""
    codes = {"this": HERE.parent, **({"other": args.other.resolve()} if args.other else {})}
    for n_events in args.events:
        args.n_events = n_events
        with tempfile.TemporaryDirectory(dir=args.disk) as scratch:
            for name, code in codes.items():
                sizes = ("--events", args.n_events, "--batch", args.batch)
                folder = Path(scratch) / name / "campaign"
                folder.parent.mkdir()
                subprocess.run(run(code, "make", "--folder", folder, *sizes), check=True)
            for turn in range(args.turns):
                turns: dict[str, dict[str, float]] = {}
                for name in reversed(codes):
                    found = measure(codes[name], Path(scratch) / name / "campaign", args)
                    turns[name] = {key: float(found[key]) for key in COMPARED}
                    own = {"code": name, "events": n_events, "batch": args.batch}
                    more = {"annotators": args.annotators, "disk": args.disk, "turn": turn}
                    row = common("cpu") | own | more | found
                    if name == "this" and args.other:
                        this, other = turns["this"], turns["other"]
                        rate, cpu = COMPARED
                        row["ratio"] = f"{this[rate] / other[rate]:.1f}"
                        row["cpu_ratio"] = f"{other[cpu] / this[cpu]:.1f}"
                    write_row(args.out, FIELDS, row)


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark, or one of its processes."""
    args = parse(arguments)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if args.mode == "make":
        make_campaign(args.folder, args.events[0], args.batch)
    elif args.mode == "serve":
        serve(args.folder)
    elif args.mode == "count":
        count(args.folder)
    else:
        bench(args)


if __name__ == "__main__":
    main()
