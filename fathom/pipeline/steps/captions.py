"""The captions step: what the model says of held-out pictures, and how much of it is right."""

from __future__ import annotations

from fathom.data.image_text import ImageTextFile, ImageTextPair
from fathom.data.images import open_image, preprocess
from fathom.data.synthetic_images import PAIR_FILES
from fathom.files import write_json
from fathom.inference.language_model import LanguageModel
from fathom.inference.prompt import Prompt, features_of
from fathom.locale import tr
from fathom.pipeline.context import StepContext
from fathom.pipeline.run_models import trained_model
from fathom.spec.recipe import CaptionsStep, PicturesStep
from fathom.spec.sampling import SamplingParams

EXAMPLES = 8


def run(step: CaptionsStep, context: StepContext) -> None:
    """Write exact and word accuracy and some captions to ``context.path(step)``."""
    model = trained_model(context, step)
    file = ImageTextFile.open(context.path(context.before(step, PicturesStep)) / PAIR_FILES["held_out"])
    pairs = file.pairs[: step.count]
    captions = []
    for index, pair in enumerate(pairs):
        captions.append(caption(model, pair))
        context.progress.update(index + 1, len(pairs), "pictures", phase="captions")
    right = [said.strip() == pair.text.strip() for said, pair in zip(captions, pairs, strict=True)]
    words = [_word_share(said, pair.text) for said, pair in zip(captions, pairs, strict=True)]
    result = {
        "count": len(pairs),
        "exact": sum(right) / len(pairs),
        "words": sum(words) / len(pairs),
        "examples": [
            {"image": str(pair.image), "text": pair.text, "said": said}
            for said, pair in list(zip(captions, pairs, strict=True))[:EXAMPLES]
        ],
    }
    write_json(context.path(step), result)
    shares = {name: f"{result[name]:.0%}" for name in ("exact", "words")}
    context.progress.message(tr("{exact} of {count} captions right, {words} of words", count=len(pairs), **shares))


def caption(model: LanguageModel, pair: ImageTextPair) -> str:
    """Return what the model says of a pair's image after its prompt, greedily."""
    vision, tokenizer = model.spec.vision, model.tokenizer
    assert vision is not None
    ids = [*tokenizer.prefix_ids, *[vision.image_token_id] * vision.tokens_per_image]
    ids += tokenizer.encode(pair.prompt, continues=True)
    features_ND = features_of(model.model, preprocess([open_image(pair.image)], vision, model.processing))
    most = min(len(tokenizer.encode(pair.text)) + 8, model.spec.max_position_embeddings - len(ids))
    said = model.generate(Prompt(tuple(ids), features_ND), SamplingParams(max_tokens=most, temperature=0.0))
    return tokenizer.decode(said, continues=True)


def _word_share(said: str, text: str) -> float:
    """The share of the text's words that stand at their place."""
    expected = text.split()
    return sum(a == b for a, b in zip(said.split(), expected, strict=False)) / max(1, len(expected))
