"""An answer that must fit a schema begins with an object, although no lesson begins so right behind the thoughts."""

import pytest
import torch
from tokenizers import Tokenizer

from models.training import batches, checkpoint
from models.training.batches import Encoder
from models.training.encoding import Renderer
from models.training.model.architecture import Step
from models.training.model.dimensions import Shape
from models.training.schema_fit import OBJECT, THOUGHT
from models.training.tasks import curriculum
from models.training.tokenizer import LINE, token_id


@pytest.fixture(scope="module")
def shipped() -> tuple[Step, Tokenizer]:
    return checkpoint.load(checkpoint.HOME, Shape())


@pytest.mark.parametrize("skill", list(curriculum.MAKERS))
def test_an_object_is_the_second_choice_behind_the_thoughts(shipped: tuple[Step, Tokenizer], skill: str) -> None:
    model, tokenizer = shipped
    encoder = Encoder(tokenizer, Renderer(checkpoint.ASSETS / "chat_template.jinja"))
    row = encoder.row(curriculum.draw(skill, 3_000, held_out=True))
    end = row.ids.index(token_id(tokenizer, THOUGHT), row.start)
    with torch.no_grad():
        said = model(batches.batch([row], None).rows)[0]
    wanted = [token_id(tokenizer, token) for token in (LINE, OBJECT)]
    assert said[end].topk(2).indices.tolist() == wanted
    assert (said[row.start - 1 :].argmax(1) == wanted[1]).sum() <= (skill == "json")
