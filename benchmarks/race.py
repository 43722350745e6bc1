"""A race of optimisation methods on small waveform inversions, at equal cost.

    python benchmarks/race.py                          # everything, about 2 hours
    python benchmarks/race.py --only salt --seeds 0 1 2
    python benchmarks/race.py --only streamer          # a survey of many shots
    python benchmarks/race.py --marmousi model.npy     # adds Marmousi from its file
    python benchmarks/race.py --report                 # the page and pictures alone

On surveys of many shots the families of methods that need tuning are tried first, and the
best of each are then run with three seeds.

Every run is a process of its own with one thread, and one JSON file in benchmarks/race.
Files that are there already are not run again, so the race may be stopped and resumed;
delete a file to run it anew. At the end the script writes benchmarks/RACE.md and the
pictures beside it from the files, whatever run they are from.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, dataclass
from multiprocessing import get_context
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

# one thread for each run; read when torch starts
os.environ["OMP_NUM_THREADS"] = "1"

import race_report
import torch
from race_cost import Prices, measure, prices_from
from race_methods import ENTRANTS, entered, environment, find, race
from race_problems import PROBLEMS, UNSEEDED, build
from race_sampled import SEEDS, SURVEY_ENTRANTS, find_survey_entrant, race_survey
from race_setup import Problem
from race_survey_report import best_tries, load_surveys
from race_surveys import MARMOUSI, SURVEYS, build_survey, encodable
from tqdm import tqdm

HERE = Path(__file__).parent
RESULTS = HERE / "race"
#: Surveys of many shots, and the problems that need Marmousi's file.
MANY_SHOTS = (*SURVEYS, *MARMOUSI)
OF_MARMOUSI = ("marmousi", *MARMOUSI)
#: Processes that a price is the median of. Within one it hardly varies, but where its
#: arrays lie in memory changes the time of a product by up to a quarter.
PRICE_PROCESSES = 5


@dataclass(frozen=True)
class Job:
    """One file to make: a problem's prices, or a method's run.

    Attributes:
        problem: By name.
        seed: Of the problem; for a survey of many shots, which has always the seed 0,
            of the method's samples.
        folder: Of all results.
        method: By name; None for the prices.
        budget: In gradients; None for the problem's own.
        marmousi: The model's file.
    """

    problem: str
    seed: int
    folder: Path
    method: str | None = None
    budget: float | None = None
    marmousi: Path | None = None

    @property
    def path(self) -> Path:
        """Where its result is kept."""
        named = find_survey_entrant if self.problem in MANY_SHOTS else find
        name = "prices" if self.method is None else named(self.method).slug
        return self.folder / self.problem / f"{name}_seed{self.seed}.json"

    @property
    def title(self) -> str:
        """For messages."""
        seed = f", seed {self.seed}" if self.seed else ""
        return f"{self.problem}{seed}: {self.method or 'prices'}"

    @property
    def done(self) -> bool:
        """True if its file is there, of the budget that is asked for."""
        if not self.path.exists():
            return False
        if self.method is None or self.budget is None:
            return True
        return bool(json.loads(self.path.read_text())["budget"] == self.budget)

    def build(self) -> Problem:
        """Return the problem."""
        if self.problem in MANY_SHOTS:
            return build_survey(self.problem, marmousi_path=self.marmousi)
        return build(self.problem, self.seed, self.marmousi)

    def run(self) -> None:
        """Do the work and write the file, whole or not at all."""
        torch.set_num_threads(1)
        surveyed = self.problem in MANY_SHOTS
        problem = self.build()
        budget = problem.budget if self.budget is None else self.budget
        result: dict[str, Any]
        if self.method is None:
            result = {
                "problem": problem.name,
                "title": problem.title,
                "size": problem.size,
                "budget": problem.budget,
                **asdict(median_price(self)),
                "environment": environment(),
            }
        elif surveyed:
            entrant = find_survey_entrant(self.method)
            prices = prices_from(read(Job(self.problem, 0, self.folder).path))
            result = race_survey(entrant, problem, prices, budget, self.seed)
        else:
            prices = prices_from(read(Job(self.problem, self.seed, self.folder).path))
            result = race(find(self.method), problem, prices, budget)
        result["seed"] = self.seed
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(result, separators=(",", ":")) + "\n")
        part.replace(self.path)


def price(job: Job) -> Prices:
    """Return what the evaluations of a job's problem cost in this process."""
    torch.set_num_threads(1)
    problem = job.build()
    return measure(problem.misfit, problem.start, problem.true)


def median_price(job: Job) -> Prices:
    """Return the median of each price over processes that run one after the other."""
    if PRICE_PROCESSES == 1:
        return price(job)
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        found = pool.map(price, [job] * PRICE_PROCESSES, chunksize=1)
    return Prices(*map(statistics.median, zip(*map(astuple, found), strict=True)))


def read(path: Path) -> dict[str, Any]:
    """Return a result file's content."""
    result: dict[str, Any] = json.loads(path.read_text())
    return result


def work(job: Job) -> None:
    """Run a job in a process of its own; a stop comes from the parent alone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    job.run()


def run_all(jobs: Sequence[Job], workers: int, told: Callable[[Job, int], None]) -> None:
    """Run jobs in processes, ``workers`` at a time.

    Args:
        jobs: In order of start.
        workers: Processes at a time.
        told: Called with each job that ends and its exit status.
    """
    context = get_context("forkserver" if os.name == "posix" else "spawn")
    if os.name == "posix":
        # each process begins as a fork of one that has imported these
        context.set_forkserver_preload(["scipy.optimize", "hvpopt.fwi"])
    waiting, running = list(jobs), {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                job = waiting.pop(0)
                process = context.Process(target=work, args=(job,))
                process.start()
                running[process.sentinel] = job, process
            for sentinel in wait(list(running)):
                job, process = running.pop(sentinel)  # type: ignore[index]
                process.join()
                told(job, process.exitcode or 0)
    finally:
        for _, process in running.values():
            process.terminate()
            process.join()


def outcome(job: Job, status: int) -> str:
    """Return a line on a job that ended."""
    if status or not job.path.exists():
        return f"{job.title}: the process died with status {status}; nothing is kept"
    result = read(job.path)
    if job.method is None:
        return (
            f"{job.title}: gradient {result['gradient_seconds']:.3f} s, value "
            f"{result['value']:.2f}, product {result['product']:.2f} gradients"
        )
    if "judged" in result:
        cost, misfit, error = result["judged"][-1] if result["judged"] else [0.0] * 3
        return (
            f"{job.title}: misfit {misfit:.1e}, model error {error:.3f}, cost {cost:g}, "
            f"{result['seconds']:.0f} s ({result['ended']} {result['message'][:80]})"
        )
    if not result["trace"]:
        return f"{job.title}: {result['ended']}, {result['message']}"
    _, _, misfit, error = result["trace"][-1]
    return (
        f"{job.title}: misfit {misfit:.1e}, model error {error:.3f}, cost "
        f"{result['cost']:.0f}, {result['seconds']:.0f} s ({result['ended']})"
    )


def jobs_of(options: argparse.Namespace) -> list[Job]:
    """Return every job that the options ask for, but the runs of families once tuned."""
    runs = []
    for name in problems_of(options):
        if name in MANY_SHOTS:
            runs += survey_jobs(name, options)
            continue
        for seed in options.seeds[:1] if name in UNSEEDED else options.seeds:
            job = Job(name, seed, options.out, marmousi=options.marmousi)
            runs.append(job)
            runs += [
                Job(name, seed, options.out, e.name, options.budget, options.marmousi)
                for e in entered(name)
                if chosen_by_name(e.name, options)
            ]
    # the longest first, so that no worker idles beside it at the end
    return sorted(runs, key=lambda job: not unlimited(job))


def problems_of(options: argparse.Namespace) -> list[str]:
    """Return the problems to race on, by name."""
    if options.only:
        return list(options.only)
    small = [*PROBLEMS, *(["marmousi"] if options.marmousi else [])]
    return [*small, *SURVEYS, *(MARMOUSI if options.marmousi else [])]


def chosen_by_name(method: str, options: argparse.Namespace) -> bool:
    """Return whether a method is asked for."""
    parts = options.methods
    return not parts or any(part.lower() in method.lower() for part in parts)


def unlimited(job: Job) -> bool:
    """Return whether a run is to end by itself."""
    if job.method is None or job.problem in MANY_SHOTS:
        return False
    return not find(job.method).limited


def survey_jobs(name: str, options: argparse.Namespace) -> list[Job]:
    """Return a survey's prices, its families' tries and the methods with nothing to tune.

    Args:
        name: Of the survey.
        options: Of the command line.
    """
    out, budget, file = options.out, options.budget, options.marmousi
    return [
        Job(name, 0, out, marmousi=file),
        *(
            Job(name, seed, out, entrant.name, budget, file)
            for entrant in SURVEY_ENTRANTS
            if entrant.enters(encodable=encodable(name))
            and chosen_by_name(entrant.name, options)
            for seed in entrant.seeds
        ),
    ]


def tuned_jobs(options: argparse.Namespace) -> list[Job]:
    """Return the runs of each family's best tries, whose files must be there."""
    results = load_surveys(options.out)
    return [
        Job(name, seed, options.out, method, options.budget, options.marmousi)
        for name in problems_of(options)
        for tries in results.families(name).values()
        for method in best_tries(tries)
        if chosen_by_name(method, options)
        for seed in SEEDS
    ]


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = [*PROBLEMS, "marmousi", *MANY_SHOTS]
    parser.add_argument("--only", nargs="+", choices=known, help="these problems")
    parser.add_argument("--methods", nargs="+", help="names, or parts of names")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of problems")
    parser.add_argument("--budget", type=float, help="of a run, in gradients")
    parser.add_argument("--workers", type=int, default=2, help="processes at a time")
    parser.add_argument("--marmousi", type=Path, help="marmousi_vp_30m.npy")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of results")
    parser.add_argument("--report", action="store_true", help="write the page alone")
    options = parser.parse_args(arguments)
    without_file = [name for name in options.only or [] if name in OF_MARMOUSI]
    if without_file and options.marmousi is None:
        parser.error(f"the problem {without_file[0]!r} needs its file: --marmousi PATH")
    if options.workers < 1:
        parser.error(f"--workers is {options.workers}; at least one must run")
    if options.budget is not None and not options.budget > 0:
        parser.error(f"--budget is {options.budget}; it must be positive")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is not there yet, then write the page; return the exit status."""
    options = parse_arguments(arguments)
    died = 0
    if not options.report:
        for entrant in (*ENTRANTS, *SURVEY_ENTRANTS):
            if entrant.missing:
                print(f"skipped: {entrant.name}; this hvpopt has no {entrant.needs}")
        with tqdm(unit="run", total=0) as bar:

            def told(job: Job, status: int) -> None:
                nonlocal died
                died += status != 0
                bar.write(outcome(job, status))
                bar.update()

            def run_what_is_left(jobs: Sequence[Job]) -> None:
                left = [job for job in jobs if not job.done]
                bar.total += len(jobs)
                bar.update(len(jobs) - len(left))
                run_all(left, options.workers, told)

            try:
                jobs = jobs_of(options)
                # no run before the prices it is charged at
                run_what_is_left([job for job in jobs if job.method is None])
                run_what_is_left([job for job in jobs if job.method is not None])
                run_what_is_left(tuned_jobs(options))
            except KeyboardInterrupt:
                bar.write("stopped; the same command resumes")
                return 130
    # a short try beside the real results keeps its page beside its own
    beside = HERE if options.out == RESULTS else options.out
    print(f"wrote {race_report.write(options.out, beside)}")
    return 1 if died else 0


if __name__ == "__main__":
    sys.exit(main())
