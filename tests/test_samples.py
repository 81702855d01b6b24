"""Our counts and histograms say what prometheus_client's own would."""

import threading

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.exposition import generate_latest

from service.samples import Histograms, Tallies

BOUNDS = (0.5, 1.0, 2.5)


def exposed(registry: CollectorRegistry) -> list[str]:
    """What is scraped, but for the times at which series were made."""
    return [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]


def test_they_are_exposed_as_the_clients_own() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    histograms, tallies = Histograms("a_seconds", "Said.", ["model"], BOUNDS), Tallies("b", "Counted.", ["x", "y"])
    ours.register(histograms)
    ours.register(tallies)
    histogram = Histogram("a_seconds", "Said.", ["model"], registry=theirs, buckets=BOUNDS)
    counter = Counter("b", "Counted.", ["x", "y"], registry=theirs)
    for value in (0.5, 0.75, 1.0, 2.0, 2.5, 9.0, 0.0):
        histograms.series("m").observe(value)
        histogram.labels("m").observe(value)
        tallies.count("1", f"{value > 1}")
        counter.labels("1", f"{value > 1}").inc()
    histograms.series("n").add(np.array([0.25, 3.0]))
    histogram.labels("n").observe(0.25)
    histogram.labels("n").observe(3.0)
    assert exposed(ours) == exposed(theirs)
    assert exposed(ours) == exposed(theirs)  # a scrape takes nothing away


def test_threads_and_scrapes_lose_nothing() -> None:
    samples = Histograms("a_seconds", "Said.", [], BOUNDS).series()
    done = threading.Event()

    def scrape() -> None:
        while not done.is_set():
            samples.read()

    def add() -> None:
        for n in range(30_000):
            samples.observe(1.0 if n % 2 else 5.0)

    scraping, adding = threading.Thread(target=scrape), [threading.Thread(target=add) for _ in range(4)]
    for thread in (scraping, *adding):
        thread.start()
    for thread in adding:
        thread.join()
    done.set()
    scraping.join()
    counts, total = samples.read()
    assert counts == [0, 60_000, 60_000, 120_000] and total == 60_000 * 6.0


def test_what_is_put_by_is_bounded() -> None:
    samples = Histograms("a_seconds", "Said.", [], BOUNDS).series()
    for _ in range(10_000):
        samples.observe(0.1)
    assert len(samples._new) < 5_000
