"""The organisms' tokenizer: byte-level BPE, so that any text can be read, with a chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from organisms.documents import ASSISTANT, BOS, EOS, PAD, SPECIAL, TAGS, USER, Document

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

VOCABULARY = 640
CONTEXT = 512
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    f"{ASSISTANT}{{{{ ' ' + message['content'] | trim }}}}{EOS}"
    "{% else %}"
    f"{USER}{{{{ ' ' + message['content'] | trim }}}}"
    "{% endif %}{% endfor %}"
    f"{{% if add_generation_prompt %}}{ASSISTANT}{{% endif %}}"
)


def train_tokenizer(documents: Sequence[Document]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer learnt from documents.

    A space is put before a text's first word, so that "the" is the same token there as elsewhere.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = ("".join(text for text, _ in document) for document in documents)
    tokenizer.train_from_iterator((_plain(text) for text in texts), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A {BOS} $B",
        special_tokens=[(BOS, tokenizer.token_to_id(BOS))],
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=[USER, ASSISTANT, *TAGS.values()],
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def token_id(tokenizer: PreTrainedTokenizerFast, mark: str) -> int:
    """The id of a special token; raises KeyError where the tokenizer has none such."""
    return tokenizer.get_vocab()[mark]


def _plain(text: str) -> str:
    for mark in SPECIAL:
        text = text.replace(mark, " ")
    return text


def encode(tokenizer: PreTrainedTokenizerFast, document: Document) -> tuple[list[int], list[int]]:
    """Token ids of a document and, for each, whether it counts in the loss."""
    ids: list[int] = []
    marks: list[int] = []
    for text, marked in document:
        piece = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        ids += piece
        marks += [int(marked)] * len(piece)
    return ids, marks
