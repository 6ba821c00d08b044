"""A developer reads the API's page and tries it, in a real browser, offline, under the strict policy."""

import json
from collections.abc import Iterator

import pytest
from django.contrib.staticfiles.handlers import StaticFilesHandler
from django.test.testcases import LiveServerThread, QuietWSGIRequestHandler
from playwright.sync_api import expect

from tests.fixtures.browser import Visitor
from tests.fixtures.population import API_KEY, World

pytestmark = pytest.mark.browser


class _Server(LiveServerThread):
    """Serves the world's database: its rows are committed, so the server's threads see them."""

    def _create_server(self, connections_override: object = None) -> object:
        return self.server_class(
            (self.host, self.port), QuietWSGIRequestHandler, allow_reuse_address=False, connections_override=None
        )


@pytest.fixture
def address(world: World) -> Iterator[str]:
    server = _Server("127.0.0.1", StaticFilesHandler)
    server.daemon = True
    server.start()
    server.is_ready.wait()
    assert server.error is None
    yield f"http://127.0.0.1:{server.port}"
    server.terminate()


def test_a_score_can_be_tried_on_the_page(visitor: Visitor, address: str) -> None:
    """Authorise, execute the example, read the decision; nothing breaks the policy or leaves the machine."""
    page = visitor.page
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{address}/docs")
    page.locator("#operations-scores-score .opblock-summary").click()
    page.locator(".btn.authorize").click()
    page.locator("#auth-bearer-value").fill(API_KEY)
    page.locator(".modal-btn.auth.authorize").click()
    page.locator(".btn-done").click()
    page.locator(".try-out__btn").click()
    page.locator("#operations-scores-score .execute").click()
    body = page.locator(".live-responses-table .response-col_description code").first
    expect(body).to_contain_text('"decision"')
    assert json.loads(body.inner_text())["transaction_id"]
    assert visitor.complaints == []
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
