"""The chat page: it loads nothing, asks nobody else, and lets nothing run but its own script."""

import base64
import re
from hashlib import sha256
from pathlib import Path

from endpoints import KEY, loopback

from interlock.serve.page.shell import chat_page


def policy_of(header: str) -> dict[str, str]:
    parts = (part.strip().partition(" ") for part in header.split(";"))
    return {name: value for name, _, value in parts}


def inside(document: str, tag: str) -> str:
    found: list[str] = re.findall(rf"<{tag}>(.*?)</{tag}>", document, re.DOTALL)
    [text] = found
    return text


def test_the_page_is_open_and_says_what_may_run(tmp_path: Path) -> None:
    with loopback(tmp_path) as running, running.client(key=None) as client:
        response = client.get("/")
        document = response.text
        refused = client.get("/v1/models")
    assert (response.status_code, refused.status_code) == (200, 401)
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    policy = policy_of(response.headers["content-security-policy"])
    digests = {
        tag: base64.b64encode(sha256(inside(document, tag).encode()).digest()).decode()
        for tag in ("script", "style")
    }
    assert policy == {
        "default-src": "'none'",
        "script-src": f"'sha256-{digests['script']}'",
        "style-src": f"'sha256-{digests['style']}'",
        "img-src": "data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
    }
    told = {name: response.headers[name] for name in ("x-frame-options", "referrer-policy")}
    assert told == {"x-frame-options": "DENY", "referrer-policy": "no-referrer"}
    assert response.headers["x-content-type-options"] == "nosniff"
    assert KEY not in document


def test_the_page_names_nothing_outside() -> None:
    document = chat_page().document.decode()
    assert re.findall(r"""(?:https?:|wss?:|["'(]//)""", document) == []
    assert re.findall(r"""(?:src|href)=["']([^"'#]+)""", document) == ["data:,"]
    assert set(re.findall(r'fetch\("([^"]+)"', document)) == {"/v1/models", "/v1/chat/completions"}
    assert "{{" not in document


def test_nothing_is_made_html_of_text_and_no_key_is_in_an_address() -> None:
    script = inside(chat_page().document.decode(), "script")
    ways = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|Function\(|DOMParser"
    assert re.findall(ways, script) == []
    assert "localStorage" not in script and "cookie" not in script
    assert script.count("sessionStorage.getItem(KEY)") == len(re.findall(r"getItem\(", script))
    assert "style=" not in chat_page().document.decode()  # which the policy would refuse
    assert re.findall(r"\bon[a-z]+=", chat_page().document.decode()) == []
