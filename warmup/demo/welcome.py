"""The first score, and what a person needs to go on by themselves."""

import json
from collections.abc import Mapping
from typing import Any

from warmup.demo.place import HOST
from warmup.demo.prepare import ADMIN_NAME
from warmup.service_client import Reply


def base_url(port: int) -> str:
    return f"http://{HOST}:{port}"


def first_score_text(reply: Reply) -> str:
    """What the first answer says."""
    score = reply.document()
    tiers = ", ".join(f"{tier['hit']} of {tier['asked']} from {tier['tier']}" for tier in score.get("trace") or ())
    degraded = f"degraded ({', '.join(score['degraded_reasons'])})" if score["degraded"] else "not degraded"
    if score.get("cold_start"):
        degraded += ", cold start"
    return f"{score['decision']}, score {score['score']:.4f}, {degraded}; keys: {tiers}"


def welcome_text(*, port: int, api_key: str, admin_password: str, transaction: Mapping[str, Any], log_dir: str) -> str:
    """URLs, key, login and a curl that works as it stands."""
    url = base_url(port)
    password = admin_password or "(the one that you have set)"
    return f"""
  API          {url}/docs
  cache        {url}/admin/cache/    login {ADMIN_NAME}, password {password}
  metrics      {url}/metrics
  API key      {api_key}
  logs         {log_dir}

  curl -s '{url}/v1/scores?include=features,trace' \\
    -H 'Authorization: Bearer {api_key}' \\
    -H 'Content-Type: application/json' \\
    -d '{json.dumps(transaction)}'

Ctrl-C stops all of it.
"""
