"""Writes docs/conformance.md from the tables of cases and what the ends were seen to do: `python -m conformance.page`.

What the page says of the relay is what `test_conformance.py` and `test_http_conformance.py` check, case by case.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from conformance.cases import CLOSE, FIN, GROUPS, PONG, Case, Difference
from conformance.ends import Outcome, direct, meet
from conformance.http_cases import GROUPS as HTTP_GROUPS
from conformance.http_ends import Outcome as HttpOutcome
from conformance.http_ends import read_by_h11

PAGE = Path(__file__).parent.parent.parent / "docs" / "conformance.md"

_WORDS = {
    Difference.NONE: "the same",
    Difference.PING: "the relay answers",
    Difference.PINGS: "the newest is answered",
    Difference.CUT: "in fragments",
    Difference.REFUSED: "the relay refuses it",
}

_BEGIN = """\
<!-- Made by tests/conformance/page.py from cases.py and what was seen; `make docs` writes it. Do not edit. -->

# Conformance

First the WebSockets that are relayed, then [the HTTP that is read](#http).

A relay must not change what two ends would have said to each other directly. Each case below is run four times: from
one end to the other and back the other way, with nothing between them and with a node between them. One end writes the
frames of the case, good or bad. The other is strict, the protocol of the websockets library, with the UTF-8 of texts
looked at. What that end receives, frame by frame, how the connection ends for it, and what comes back must be the
same with and without the relay, but for the differences below, which are exact too. `make test` runs all of it.

The rules are those of [RFC 6455](https://www.rfc-editor.org/rfc/rfc6455). The cases are in
`tests/conformance/cases.py`; how the relay treats frames is in [protocol.md](protocol.md#an-established-connection).

## Where the relay makes a difference

| in the tables | what it does, and why |
| --- | --- |
"""

_HTTP = """
## HTTP

A request that is malformed must be refused, and reach no listener. And nobody may disagree where a request ends: what
is the body of one for the relay, and a request of its own for somebody else, is how requests are smuggled. So each case
below is the beginning of a connection to a node's port, sent at once and in pieces of three bytes. What is handed on
must be the requests that the table names, with exactly their bodies, and the refusal must have the status that it
names, with the connection closed behind it; and a listener behind a whole node hears of them and of nothing else. The
same bytes are read by [h11](https://h11.readthedocs.io): what both read must be the same, request by request, and where
one reads more than the other, the other must have refused.

The rules are those of [RFC 9112](https://www.rfc-editor.org/rfc/rfc9112); sections of another RFC have its number
ahead. The cases are in `tests/conformance/http_cases.py`.
"""


async def page() -> str:
    """The page, from what the ends do when nothing is between them."""
    text = _BEGIN
    for difference in Difference:
        if difference is not Difference.NONE:
            text += f"| {_WORDS[difference]} | {difference.value} |\n"
    text += (
        "\nTwo more things cannot be seen by ends like these. The relay writes lengths in their shortest form, however"
        " they came,\nand a frame that announces 2^63 bytes or more is refused at its head, with 1002.\n"
    )
    for group, cases in GROUPS.items():
        text += f"\n## {group}\n\n| sent | the other end | answers | through the relay |\n| --- | --- | --- | --- |\n"
        for case in cases:
            outcome = await meet(case, "sender", between=direct)
            cells = (case.name, _made_of(case, outcome), _answers(outcome), _WORDS[case.difference])
            text += f"| {' | '.join(cells)} |\n"
    text += _HTTP
    for group, http_cases in HTTP_GROUPS.items():
        text += f"\n### {group}\n\n| sent | section | the relay | h11 |\n| --- | --- | --- | --- |\n"
        for each in http_cases:
            ours = HttpOutcome(each.requests, each.refused)
            theirs = read_by_h11(each.sent)
            told = "the same" if _in_words(theirs) == _in_words(ours) else _in_words(theirs)
            text += f"| {each.name.replace('|', '&#124;')} | {each.rule} | {_in_words(ours)} | {told} |\n"
    return text


def _in_words(outcome: HttpOutcome) -> str:
    count = len(outcome.requests)
    read = "" if not count else "reads it" if count == 1 else f"reads {count}"
    refused = f"refuses with {outcome.refused}" if outcome.refused else ""
    return ", then ".join(each for each in (read, refused) if each) or "waits for more"


def _made_of(case: Case, outcome: Outcome) -> str:
    if outcome.end.startswith("refuses it"):
        return "refuses it"
    return f"reads {outcome.end}" if case.ends else "takes it"


def _answers(outcome: Outcome) -> str:
    words = []
    for heard in outcome.answers:
        if heard.first == FIN | CLOSE:
            words.append(f"Close {int.from_bytes(heard.payload[:2], 'big')}" if heard.payload else "Close")
        elif heard.first == FIN | PONG:
            words.append("Pong")
    return ", ".join(words)


if __name__ == "__main__":
    text = asyncio.run(page())
    if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
        PAGE.write_text(text, encoding="utf-8")
        print("wrote docs/conformance.md")
