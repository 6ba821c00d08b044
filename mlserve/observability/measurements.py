"""Gauges that no process sets, because they are the host's: they are measured at each scrape.

An app registers in its `AppConfig.ready()`:

    from mlserve.observability.measurements import register_measurement
    register_measurement("spool", measure_spool)
"""

from collections.abc import Callable, Iterable, Mapping

import structlog
from prometheus_client import Gauge, Metric
from prometheus_client.core import GaugeMetricFamily

_log = structlog.get_logger(__name__)
Measurement = Callable[[], Mapping[Gauge, Mapping[str, float]]]
"""What gauges of one label show now, by the label's value."""
_registry: dict[str, Measurement] = {}


def register_measurement(name: str, measurement: Measurement) -> None:
    """Adds gauges to every later scrape. The same name again replaces them."""
    _registry[name] = measurement


class Measured:
    """A collector for prometheus-client's registries. What cannot be measured is left out, and logged."""

    def collect(self) -> Iterable[Metric]:
        for name, measurement in _registry.items():
            try:
                measured = measurement()
            except Exception as error:  # whatever it is, the other metrics are as important
                _log.warning("measurement_failed", measurement=name, error=f"{type(error).__name__}: {error}")
                continue
            for gauge, values in measured.items():
                family = GaugeMetricFamily(gauge._name, gauge._documentation, labels=gauge._labelnames)
                for label, value in values.items():
                    family.add_metric([label], value)
                yield family
