"""Images and PDFs that Claude Code's own tool reads: it sends an image in the tool's result, a PDF beside it."""

from __future__ import annotations

import pytest
from PIL import Image

from tests.agents.conftest import installed
from tests.agents.conversations import ANSWER, DEFAULT, call, conversation, task_text, turn
from tests.agents.programs import CLAUDE, Ran, Workplace
from tests.agents.recording import Request, recorded, scripted

pytestmark = pytest.mark.agents

PDF = b"""%PDF-1.4
1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj
2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj
3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 200 100]/Contents 4 0 R/Resources<</Font<</F1 5 0 R>>>>>>endobj
4 0 obj<</Length 39>>stream
BT /F1 18 Tf 20 50 Td (PINEAPPLE) Tj ET
endstream endobj
5 0 obj<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>endobj
trailer<</Root 1 0 R>>
%%EOF
"""


async def run_read(place: Workplace, name: str, shown: str) -> tuple[Ran, Request]:
    """Read the file; the answer is said only where `shown` (a pattern) is in what the engine gets after that. Returns
    the request with the file too."""
    installed(CLAUDE)
    seen = {"last": [shown], "turns": [turn(say=ANSWER)]}
    turns = [turn(call("Read", file_path="{{dir}}/" + name)), turn(say="The model was not shown it.")]
    async with recorded({"a": scripted([seen, conversation("FILE", turns), DEFAULT])}) as running:
        ran = await place.run(CLAUDE, running.url, task_text("FILE", place.work))
        return ran, running.recorder.turns()[-1]


async def test_an_image_that_a_tool_has_read_reaches_the_engine(workplace: Workplace) -> None:
    Image.new("RGB", (96, 64), "red").save(workplace.work / "red.png")
    ran, request = await run_read(workplace, "red.png", shown="<im_patch>")
    (result,) = request.json()["messages"][-1]["content"]
    assert result["content"][0]["type"] == "image", "the program has changed what it sends"
    assert ran.status == 0, ran
    assert ANSWER in ran.output, ran
    assert "x-step-ignored" not in request.answer_headers


async def test_a_pdf_that_a_tool_has_read_is_named_to_the_model_and_in_the_header(workplace: Workplace) -> None:
    (workplace.work / "page.pdf").write_bytes(PDF)
    ran, request = await run_read(
        workplace, "page.pdf", shown="The document .*application/pdf.* cannot be read by this server"
    )
    kinds = [block["type"] for block in request.json()["messages"][-1]["content"]]
    assert kinds == ["tool_result", "document"], "the program has changed what it sends"
    assert ran.status == 0, ran
    assert ANSWER in ran.output, ran
    assert "document application/pdf" in request.answer_headers["x-step-ignored"]
