"""What several processes count is added up as if one had counted it."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.metrics import Metrics
from service.sums import ModelSums, Sums, added


def work(metrics: Metrics, requests: int, label: str) -> None:
    """Counts some requests as the service does."""
    observer = metrics.observer("m", "1")
    observer.watch(lambda: 3)
    for _ in range(requests):
        metrics.answered("/predict", 200, 0.002)
        observer.batch(2, [0.001, 0.002], 0.004)
        observer.predicted(label)
        observer.dropped()
    metrics.info.labels("m", "1", "cpu").set(1)


def told(text: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample of an exposition."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
        if not sample.name.startswith(("process_", "python_")) and not sample.name.endswith("_created")
    }


def read(metrics: Metrics) -> Sums:
    """As it comes from another process."""
    return Sums.model_validate_json(Sums.read(metrics.registry, []).model_dump_json())


def test_two_processes_say_what_one_would_say_that_did_the_work_of_both() -> None:
    here, there, both = Metrics(), Metrics(), Metrics()
    work(here, 3, "cat")
    work(there, 4, "dog")
    work(both, 3, "cat")
    work(both, 4, "dog")
    found, wanted = told(here.expose([read(there)])), told(both.expose())
    wanted["focalserve_queue_images", (("model", "m"),)] = 6.0  # each has a queue of its own
    assert found == pytest.approx(wanted)
    assert found["focalserve_predictions_total", (("label", "dog"), ("model", "m"))] == 4.0
    assert found["focalserve_model_info", (("model", "m"), ("provider", "cpu"), ("version", "1"))] == 1.0


def test_a_histogram_that_only_another_process_has_is_whole_and_in_order() -> None:
    here, there = Metrics(), Metrics()
    there.answered("/predict", 200, 0.002)
    lines = [line for line in here.expose([read(there)]).decode().splitlines() if "request_seconds" in line]
    buckets = [line for line in lines if "_bucket" in line]
    assert len(buckets) == 15 and 'le="+Inf"' in buckets[-1] and buckets[-1].endswith(" 1.0")
    assert [line.rsplit(" ", 1)[1] for line in buckets] == ["0.0"] * 2 + ["1.0"] * 13


def test_memory_is_that_of_all_processes_and_the_start_that_of_the_first() -> None:
    here = Metrics()

    def own(text: bytes, name: str) -> float:
        return next(float(line.split()[1]) for line in text.decode().splitlines() if line.startswith(name + " "))

    alone = here.expose()
    three = here.expose([read(here), read(here)])
    memory = own(three, "process_resident_memory_bytes") / own(alone, "process_resident_memory_bytes")
    assert 2.5 < memory < 3.5
    assert own(three, "process_start_time_seconds") == own(alone, "process_start_time_seconds")


def test_of_a_process_that_is_no_more_the_counts_stay_but_not_the_gauges() -> None:
    here, gone = Metrics(), Metrics()
    work(gone, 5, "cat")
    past = added([added([read(gone).lasting()]), read(gone).lasting()])
    found = told(here.expose([past]))
    assert found["focalserve_requests_total", (("code", "200"), ("route", "/predict"))] == 10.0
    assert found["focalserve_dropped_images_total", (("model", "m"),)] == 10.0
    assert ("focalserve_queue_images", (("model", "m"),)) not in found


def test_batches_of_ever_new_sizes_are_not_kept_for_ever() -> None:
    sums = ModelSums()
    for size in range(1, 3001):
        sums.batch(size, 0.0, 1e-3)
    sums.batch(1, 0.0, 1e-3)
    assert len(sums.by_size) == 1024 and sums.by_size[1] == (2, 2_000_000)
    assert sums.runs == 3001 and sums.images == 3000 * 3001 // 2 + 1


def test_the_sums_of_a_model_add_up_size_by_size() -> None:
    one, other = ModelSums(), ModelSums()
    one.batch(2, 0.25, 0.5)
    one.request(True, 1.0)
    other.batch(2, 0.25, 0.5)
    other.batch(7, 0.0, 1.0)
    other.request(False, 2.0)
    sums = one.plus(other)
    assert (sums.images, sums.runs, sums.succeeded, sums.failed) == (11, 3, 1, 1)
    assert (sums.queue_ns, sums.infer_ns) == (500_000_000, 2_000_000_000)
    assert (sums.total_ns, sums.failed_ns) == (1_000_000_000, 2_000_000_000)
    assert sums.last_ms == other.plus(one).last_ms == one.last_ms > 0
    assert sums.by_size == {2: (2, 1_000_000_000), 7: (1, 1_000_000_000)}
    assert one.by_size == {2: (1, 500_000_000)}
    read_again = Sums.model_validate_json(Sums(models=[("m", "1", one)]).model_dump_json())
    assert read_again.of_model("m", "1") == one and read_again.of_model("m", "2") == ModelSums()
