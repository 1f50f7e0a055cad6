"""Samples in Prometheus's formats, written by the official client from a registry per response."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from cipherbox.ops.metrics import COUNTER, METRICS, Histogram, Sample

_FAMILIES = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
    "histogram": HistogramMetricFamily,
}


class _Taken(Collector):
    """Samples taken at one moment."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self._samples = samples

    def collect(self) -> Iterator[Family]:
        families: dict[str, Family] = {}
        for sample in self._samples:
            metric = METRICS[sample.name]
            if sample.name not in families:
                name = sample.name.removesuffix("_total") if metric.kind == COUNTER else sample.name
                families[sample.name] = _FAMILIES[metric.kind](
                    name, metric.help, labels=metric.labels
                )
            _add(families[sample.name], sample)
        yield from families.values()


def _add(family: Family, sample: Sample) -> None:
    value = sample.value
    if not isinstance(value, Histogram):
        family.add_metric(sample.labels, value)  # type: ignore[attr-defined]
        return
    buckets, below = [], 0
    for bound, count in zip([*map(str, value.bounds), "+Inf"], value.counts, strict=True):
        below += count
        buckets.append((bound, below))
    family.add_metric(sample.labels, buckets, value.total)  # type: ignore[attr-defined]


def exposition(samples: Iterable[Sample], accept: str = "") -> tuple[bytes, str]:
    """Return the response of /metrics and its content type: OpenMetrics if the client accepts it,
    else the older text format.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Taken(list(samples)))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type
