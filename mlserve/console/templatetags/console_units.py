"""`units.py` as template filters, by the same names."""

from django import template

from mlserve.console import units

register = template.Library()
for _write in (units.share, units.latency, units.span, units.age, units.rate, units.count, units.size, units.moment):
    register.filter(_write.__name__, _write)
