from __future__ import annotations

from medmoco.starting.health.finding import Finding, findings_text


def test_findings_text__a_remedy_below_its_finding() -> None:
    findings = [Finding("GPU", "ok", "none"), Finding("locks", "warning", "none here", "use a local disk")]
    assert findings_text(findings) == "ok       GPU: none\nwarning  locks: none here\n         -> use a local disk"
