"""The command line: arguments in, one of the other modules called, an exit code out. Nothing is decided here."""

import argparse
import difflib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from pipeline.config import Config, load_config
from pipeline.errors import ConfigError, DamagedRun, HiernasError
from pipeline.run import RunFolder
from pipeline.status import story, summary
from pipeline.store import Store, address, folders, open_store
from search.limits import Desire
from search.records import RUN_NAME, ReleaseReason
from search.state import State

DEFAULT_STORE = "runs"


def _store_url(given: str | None, configured: str = DEFAULT_STORE) -> str:
    return given or os.environ.get("HIERNAS_STORE") or configured


def _existing_store(arguments: argparse.Namespace) -> Store:
    """The store to read from; unlike `hiernas run`, reading does not make one."""
    url = _store_url(arguments.store)
    if "://" not in url and not Path(url).is_dir():
        raise ConfigError(f"there is no store {url!r} here; give --store URL or set HIERNAS_STORE")
    return open_store(url, make=False)


def _folder(arguments: argparse.Namespace) -> RunFolder:
    store = _existing_store(arguments)
    if not RUN_NAME.fullmatch(arguments.run):
        raise ConfigError(f"run name {arguments.run!r} is not possible; `hiernas ls` lists the runs")
    return RunFolder(store, arguments.run)


def _config(arguments: argparse.Namespace) -> Config:
    """The config with what the command line says over it."""
    from dataclasses import replace

    config = load_config(Path(arguments.config))
    try:
        if arguments.executor:
            config = replace(config, executor=replace(config.executor, kind=arguments.executor))
        if arguments.workers is not None:
            config = replace(config, limits=config.limits.changed({"workers": arguments.workers}))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return config


def _run(arguments: argparse.Namespace) -> int:
    from pipeline.launch import launch, launch_submitted

    config = _config(arguments)
    url = _store_url(arguments.store, config.store)
    if arguments.submitted:
        reason = launch_submitted(config, url, arguments.metrics_port)
        return 128 + signal.SIGTERM if reason is ReleaseReason.INTERRUPTED else 0  # 0 would complete its Job in the midst of a search
    reason = launch(config, url, arguments.take_over, not arguments.no_lock, metrics_port=arguments.metrics_port)
    return 1 if reason is ReleaseReason.HALTED else 0


def _submit(arguments: argparse.Namespace) -> int:
    from pipeline.launch import described, submit

    arguments.executor, arguments.workers = "kubernetes", None
    config = _config(arguments)
    url = _store_url(arguments.store, config.store)
    text = Path(arguments.config).read_text(encoding="utf-8")
    if arguments.dry_run:
        import yaml

        plain = json.loads(json.dumps(described(config, text, url)))  # without YAML's aliases
        as_list = {"apiVersion": "v1", "kind": "List", "items": plain}
        print(json.dumps(as_list, indent=2) if arguments.output == "json" else yaml.safe_dump_all(plain, sort_keys=False).rstrip())
        return 0
    done = submit(config, text, url, arguments.take_over)
    assert config.cluster is not None
    print(
        f"run {config.run!r} in namespace {config.cluster.namespace!r}: {done}\n"
        f"`hiernas status {config.run} --store {url}` tells how it goes; remove it from the cluster (the store keeps everything): "
        f"kubectl -n {config.cluster.namespace} delete lease {config.run}"
    )
    return 0


def _ls(arguments: argparse.Namespace) -> int:
    store = _existing_store(arguments)
    names = [name for name in folders(store) if (key := f"{name}/run.json") in store.list(key)]
    rows, damaged = [], []
    for name in names:
        try:
            rows.append(summary(RunFolder(store, name).load(), time.time()))
        except DamagedRun as error:  # the others are shown all the same
            damaged.append(str(error))
    for what in damaged:
        print(f"hiernas: {what}", file=sys.stderr)
    if arguments.json:
        print(json.dumps(rows))
    elif not names:
        print("the store has no runs yet; `hiernas run CONFIG` begins one, for example `hiernas run configs/demo.yaml`")
    for row in [] if arguments.json else rows:
        best = f"{row['best']['fitness']:.2%}" if row["best"] else "-"
        print(f"{row['run']:40} {row['state']:12} {row['evaluated']}/{row['max_evaluations']} evaluated, best {best}")
    return DamagedRun.exit_code if damaged else 0


def _status(arguments: argparse.Namespace) -> int:
    folder = _folder(arguments)
    before: object = None
    while True:
        state = folder.load()
        found = summary(state, time.time())
        reasons = _reasons(state, arguments.namespace) if arguments.why else []
        if (found, reasons) != before:
            if arguments.json:
                print(json.dumps(found), flush=True)
            else:
                _print_status(found)
            for reason in reasons:
                print(f"why               {reason}", flush=True)
        before = found, reasons
        if not arguments.watch or (found["state"] in ("finished", "stopped", "halted", "moved") and not found["in_charge"]):
            return 0
        time.sleep(2)


def _reasons(state: State, namespace: str | None) -> list[str]:
    try:
        from pipeline.api import Api
        from pipeline.labels import namespace_of
        from pipeline.why import why
    except ModuleNotFoundError as error:
        raise ConfigError(f"--why needs the package {error.name!r}; install hiernas[cluster]") from error
    of_pod = namespace_of(state.last_claim.owner) if state.last_claim is not None else None
    return why(state, namespace or of_pod or "hiernas", Api(), time.time())


def _print_status(found: dict[str, object]) -> None:
    for key, value in found.items():
        if isinstance(value, dict):
            value = ", ".join(f"{name} {inner}" for name, inner in value.items()) or "none"
        print(f"{key.replace('_', ' '):18}{'-' if value is None else value}", flush=True)


def _show(arguments: argparse.Namespace) -> int:
    lines = story(_folder(arguments), arguments.candidate)
    if not lines:
        raise ConfigError(f"run {arguments.run!r} has no candidate {arguments.candidate}; see `hiernas status {arguments.run}`")
    print("\n".join(lines))
    return 0


def _request(desire: Desire | None) -> Callable[[argparse.Namespace], int]:
    def act(arguments: argparse.Namespace) -> int:
        from pipeline.launch import in_charge
        from pipeline.requests import parse_changes, request

        folder = _folder(arguments)
        folder.load()
        wanted = Desire.STOP_NOW if desire is Desire.STOP and arguments.now else desire
        number = request(folder, parse_changes(getattr(arguments, "changes", [])), wanted)
        waits = (
            ""
            if in_charge(folder)
            else "; nobody is in charge of the run now; it takes effect at its next start (`hiernas run`, on a cluster `hiernas submit`)"
        )
        print(f"request {number} written{waits}")
        return 0

    return act


def _report(arguments: argparse.Namespace) -> int:
    from pipeline.report import write_report

    folder = _folder(arguments)
    write_report(folder, Path(arguments.out))
    print(f"report: {Path(arguments.out) / 'report.html'}")
    return 0


def _explain(arguments: argparse.Namespace) -> int:
    from pipeline.explain import explain

    print(explain(arguments.genotype, arguments.space, arguments.recipe, arguments.draw))
    return 0


def _copy(arguments: argparse.Namespace) -> int:
    from pipeline.clock import SystemClock
    from pipeline.launch import place
    from pipeline.move import Counter, begin_from, move

    folder = _folder(arguments)
    if not folder.exists():  # told before a store is made for its copy
        raise ConfigError(f"the store has no run {arguments.run!r}; `hiernas ls` lists those it has")
    counter = Counter(SystemClock(), sys.stderr)
    to, target = address(arguments.to), open_store(arguments.to)
    if arguments.until is not None:
        print(begin_from(folder, arguments.until, target, to, counter))
    else:
        print(move(folder, target, to, place(), SystemClock(), arguments.take_over, counter))
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from pipeline.verify import Level, verify

    folder = _folder(arguments)
    if not folder.exists():
        raise ConfigError(f"the store has no run {arguments.run!r}; `hiernas ls` lists those it has")
    findings = verify(folder.store, arguments.run)
    if arguments.json:
        print(json.dumps([{"level": one.level.value, "key": one.key, "what": one.what} for one in findings]))
    for finding in [] if arguments.json else findings:
        print(f"{finding.level.value}: {arguments.run}/{finding.key}: {finding.what}")
    errors = sum(finding.level is Level.ERROR for finding in findings)
    if errors:
        raise DamagedRun(f"run {arguments.run!r} is damaged: {errors} errors, listed above")
    if not arguments.json:
        print(f"run {arguments.run!r} is whole: every record valid, every candidate re-derived, every invariant holds")
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from pipeline.doctor import examine, tell

    path = Path(arguments.config)
    config = load_config(path)
    url = _store_url(arguments.store, config.store)
    return 0 if tell(examine(config, path.read_text(encoding="utf-8"), url, arguments.smoke), sys.stdout, arguments.json) else 1


def _prepare(arguments: argparse.Namespace) -> int:
    from pipeline import prepare
    from search.dataset import SPLITS

    root = Path(arguments.data_root)
    for name in arguments.names:
        if name == "digits":
            dataset = prepare.prepare_digits(root / name)
        elif arguments.source is None:
            raise ConfigError(f"data set {name!r} is made from a local copy: give --source FOLDER (nothing is downloaded)")
        else:
            dataset = prepare.prepare_cifar(name, Path(arguments.source), root / name)
        counts = ", ".join(f"{dataset.splits[part].images} {part}" for part in SPLITS)
        print(f"{root / name}: {counts} images, digest {dataset.digest[:16]}")
    return 0


def _worker(arguments: argparse.Namespace) -> int:
    import logging
    from functools import partial

    from pipeline import transfer
    from pipeline.worker import TRAINER, load_trainer, work

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    # As the first process of a container it would ignore SIGTERM: then an eviction would hold its GPU until SIGKILL.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    url = _store_url(arguments.store)
    store = open_store(url, make=False)
    fetch = partial(transfer.fetch, transfer.files_of(store, url)) if arguments.fetch else None
    return work(store, arguments.run, arguments.candidate, arguments.attempt, lambda: load_trainer(TRAINER), arguments.data_root, fetch)


_EXAMPLES = {
    "run": """
  hiernas run configs/demo.yaml                 begin it, or go on where it was
  hiernas run configs/demo.yaml --workers 4     with other limits; the run remembers them

All keys of a config: docs/config.md. What to do when something goes wrong: docs/operations.md.""",
    "submit": """
  hiernas submit search.yaml --store s3://bucket/runs
  hiernas submit search.yaml --dry-run

Again with other limits: they are asked for, like `hiernas set`. With another image or other resources: the controller is
replaced, running workers go on. KUBECONFIG says which cluster, --dry-run what is created there, docs/config.md, section cluster, what can be set.""",
    "ls": """
  hiernas ls
  hiernas ls --store /srv/runs --json""",
    "status": """
  hiernas status demo
  hiernas status demo --watch
  hiernas status demo --json
  hiernas status demo --why

`evaluated` counts every outcome, failed and reused ones too; `in flight` are candidates without an outcome.""",
    "show": """
  hiernas show demo 17

Every record that this tells of is a file of the run: docs/records.md.""",
    "set": """
  hiernas set demo max_evaluations=64
  hiernas set demo workers=4 max_gpu_hours=none

All limits: docs/config.md, section limits. Lowering `workers` lets what runs finish.""",
    "pause": """
  hiernas pause demo

`hiernas resume` goes on.""",
    "resume": """
  hiernas resume demo

After `stop` or a halt the controller has ended: start it again with the same `hiernas run` or `hiernas submit`.""",
    "stop": """
  hiernas stop demo
  hiernas stop demo --now

`hiernas resume`, then the same `hiernas run` or `hiernas submit`, goes on.""",
    "report": """
  hiernas report demo --out demo-report

Writes report.html, which needs no network, figures as SVG and PNG, and best-genotype.json. A report can be made at any moment.""",
    "copy": """
  hiernas copy demo --to s3://searches/runs                  move it: it goes on there, and here it has ended
  hiernas copy demo --to /srv/runs --until 20                a new run there, which begins with the first 20 outcomes

The same command again continues an interrupted copy. What is copied, and what becomes of work under way: docs/operations.md.""",
    "verify": """
  hiernas verify demo
  hiernas verify demo --json

What each finding means and what to do: docs/operations.md. Exit code 4: the run is damaged.""",
    "doctor": """
  hiernas doctor configs/demo.yaml
  hiernas doctor search.yaml --store s3://bucket/runs --smoke
  hiernas doctor search.yaml --json

A line each: ok, warning, FAILED, or unknown (no right to look), with what was found and what to do. Exit code 1: something failed.
Some small objects stay in the store below _doctor/ (large ones too, where they may not be deleted), and the records of --smoke.
What each check means: docs/operations.md.""",
    "explain": """
  hiernas explain --genotype 1.0-6.3-0-3+6.4-2.0-0-0+5.1-2.2-3-1+1.4-4.3-4-0+4.1-1.3-3-0+3.2-0.2-6-4:6.2-1.5-5-1.4-5-0-1 --draw cell.svg

A genotype is motifs joined by '+', levels by ':'; a motif is its rows below the first, joined by '.'. `hiernas status` prints the best.""",
    "prepare": """
  hiernas data prepare digits
  hiernas data prepare cifar10 --source ~/cifar""",
    "worker": """
  hiernas worker --run demo --candidate 17 --attempt 0

Executors do this; by hand it is useful for debugging one candidate. It writes nothing where an evaluation is already.""",
}
"""What stands below a command's options in its help."""
_MAIN = """first steps:
  hiernas data prepare digits                   images that come with scikit-learn; nothing is downloaded
  hiernas run configs/demo.yaml                 a search of some minutes
  hiernas report demo --out runs/demo-report    what it found

`hiernas COMMAND --help` shows examples. README.md explains the words, docs/operations.md what to do when.

exit codes: 0 done, 1 failed, 2 bad usage or config, 3 overtaken by another controller, 4 damaged run, 5 this machine is at fault"""


class _Parser(argparse.ArgumentParser):
    """Says which command was meant, and where the help is."""

    def error(self, message: str) -> NoReturn:
        given = message.partition("invalid choice: '")[2].partition("'")[0]
        if given:
            words = [word.strip(" ')") for word in message.rpartition("(choose from ")[2].split(",")]
            near = difflib.get_close_matches(given, words, 1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            message = f"{message.partition(': invalid choice')[0]}: {given!r} is unknown{hint}; known: {', '.join(words)}"
        self.exit(2, f"hiernas: {message}\nTry `{self.prog} --help`\n")


def parser() -> argparse.ArgumentParser:
    """All commands with their arguments."""
    raw = argparse.RawDescriptionHelpFormatter
    top = _Parser(
        prog="hiernas", description="Search for neural network architectures: hierarchical evolution (Liu et al. 2018).", epilog=_MAIN, formatter_class=raw
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, act: Callable[[argparse.Namespace], int], text: str, run: bool = True, store: bool = True) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text, epilog=f"examples:{_EXAMPLES[name]}", formatter_class=raw)
        command.set_defaults(act=act)
        if run:
            command.add_argument("run", metavar="RUN", help="name of the run")
        if store:
            command.add_argument(
                "--store", metavar="URL", help=f"a path, file:///path or s3://bucket/prefix (default: $HIERNAS_STORE, else the config's, else {DEFAULT_STORE})"
            )
        return command

    run = add(
        "run",
        _run,
        "Begin or continue a search in the foreground. Ctrl-C once lets local attempts finish, twice ends them; jobs in a cluster go on. All can be resumed.",
        run=False,
    )
    run.add_argument("config", metavar="CONFIG", help="YAML file, for example configs/demo.yaml")
    run.add_argument("--executor", choices=("inline", "processes", "kubernetes"), help="where attempts run (default: the config's)")
    run.add_argument("--workers", type=int, metavar="N", help="attempts open at once (default: the config's)")
    run.add_argument("--take-over", action="store_true", help="take charge of a run that another owner's controller has left, or replace a running one")
    run.add_argument("--metrics-port", type=int, metavar="PORT", help="serve Prometheus metrics there, on this machine only (in a pod: on all addresses)")
    run.add_argument("--no-lock", action="store_true", help=argparse.SUPPRESS)
    run.add_argument("--submitted", action="store_true", help=argparse.SUPPRESS)  # what the controller's pod runs

    submit = add("submit", _submit, "Run a search on a Kubernetes cluster: its controller and its workers as pods.", run=False)
    submit.add_argument("config", metavar="CONFIG", help="YAML file with a section `cluster`")
    submit.add_argument("--dry-run", action="store_true", help="print what would be created, and touch neither store nor cluster")
    submit.add_argument("-o", "--output", choices=("yaml", "json"), default="yaml", help="of --dry-run: YAML documents, or one JSON list (default: yaml)")
    submit.add_argument("--take-over", action="store_true", help="replace a controller outside of the cluster that is gone, or still runs")

    add("ls", _ls, "List the runs of a store.", run=False).add_argument("--json", action="store_true", help="for scripts")
    status = add("status", _status, "Say where a run stands, from its records.")
    status.add_argument("--json", action="store_true", help="for scripts")
    status.add_argument("--why", action="store_true", help="also say why something waits in the cluster, and what to do (needs a kubeconfig)")
    status.add_argument("--namespace", metavar="NAME", help="where --why looks (default: where the controller is, else hiernas)")
    status.add_argument("--watch", action="store_true", help="look again every 2 seconds until it has ended; print what has changed")
    add("show", _show, "Tell one candidate's whole story.").add_argument("candidate", type=int, metavar="N", help="index of the candidate")
    add("set", _request(None), "Change limits of a run, while it runs or before it goes on.").add_argument(
        "changes", nargs="+", metavar="NAME=VALUE", help="for example workers=4 max_evaluations=200 max_gpu_hours=none"
    )
    add("pause", _request(Desire.PAUSE), "Start nothing new; what runs goes on.")
    add("resume", _request(Desire.RUN), "Go on after pause, stop or a halt.")
    add("stop", _request(Desire.STOP), "Let what runs finish, then end the controller. The run stays stopped until `resume`.").add_argument(
        "--now", action="store_true", help="end what runs too; it costs its candidates nothing"
    )
    add("report", _report, "Write a report: one HTML file, figures, the best genotype.").add_argument(
        "--out", required=True, metavar="DIR", help="folder for it"
    )
    copy = add("copy", _copy, "Move a run to another store, or begin a new one there from its beginning.")
    copy.add_argument("--to", required=True, metavar="URL", help="the other store: a path, file:///path or s3://bucket/prefix")
    copy.add_argument("--until", type=int, metavar="N", help="begin a new run there from the first N outcomes; this one stays as it is")
    copy.add_argument("--take-over", action="store_true", help="move it though a controller is in charge: that one stops; or it is gone for good")
    add("verify", _verify, "Check every record, re-derive every candidate. Changes nothing.").add_argument("--json", action="store_true", help="for scripts")

    doctor = add("doctor", _doctor, "Check everything that a run will need, before it.", run=False)
    doctor.add_argument("config", metavar="CONFIG", help="YAML file, for example configs/demo.yaml")
    doctor.add_argument("--smoke", action="store_true", help="also run one tiny candidate through everything, once for each pool of nodes")
    doctor.add_argument("--json", action="store_true", help="for scripts")

    explain = add("explain", _explain, "Explain a genotype: its matrices, its network's cost, its drawing.", run=False, store=False)
    explain.add_argument("--genotype", required=True, metavar="TEXT", help="as `hiernas status` prints it")
    explain.add_argument("--space", default="liu2018-hierarchical", metavar="NAME", help="its search space (default: %(default)s)")
    explain.add_argument(
        "--recipe", default="liu2018-search", metavar="NAME", help="recipe whose model is counted, on 32×32 colour images of 10 classes (default: %(default)s)"
    )
    explain.add_argument("--draw", metavar="FILE", help="also draw it into a .png or .svg file")

    data = commands.add_parser("data", help="Prepare data sets.", description="Prepare data sets.")
    prepare = data.add_subparsers(required=True, metavar="COMMAND").add_parser(
        "prepare",
        help="make data sets ready for workers",
        description="Make data sets ready for workers. Nothing is downloaded.",
        epilog=f"examples:{_EXAMPLES['prepare']}",
        formatter_class=raw,
    )
    prepare.set_defaults(act=_prepare)
    prepare.add_argument(
        "names", nargs="+", choices=("digits", "cifar10", "cifar100"), metavar="NAME", help="digits (comes with scikit-learn), cifar10, cifar100"
    )
    prepare.add_argument("--source", metavar="FOLDER", help="local copy of CIFAR, as torchvision keeps it")
    prepare.add_argument("--data-root", default="data", metavar="FOLDER", help="where prepared data sets are kept (default: %(default)s)")

    worker = add("worker", _worker, "Run one attempt: what a job runs.", run=False)
    worker.add_argument("--run", required=True, metavar="NAME", help="name of the run")
    worker.add_argument("--candidate", required=True, type=int, metavar="N", help="index of the candidate")
    worker.add_argument("--attempt", required=True, type=int, metavar="N", help="number of the attempt")
    worker.add_argument("--data-root", default="data", metavar="FOLDER", help="folder of the prepared data sets (default: %(default)s)")
    worker.add_argument("--fetch", action="store_true", help="fetch the data set from the store if that folder does not have it")
    return top


def main(arguments: list[str] | None = None) -> int:
    """Entry point of `hiernas`."""
    if not (sys.argv[1:] if arguments is None else arguments):
        parser().print_help()
        return 0
    given = parser().parse_args(arguments)
    try:
        code: int = given.act(given)
        sys.stdout.flush()
        return code
    except HiernasError as error:
        print(f"hiernas: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except OSError as error:
        print(f"hiernas: {error.filename or 'the system'}: {error.strerror or error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
