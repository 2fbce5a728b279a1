"""A transformers model as the engine sees it: spans of tokens in, logits and states out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from branchwise.backends.hf.attention import Pass, Span
from branchwise.backends.hf.pool import Pool, Shape


@dataclass(frozen=True, slots=True)
class Seen:
    """What the model says after some of the tokens of a pass.

    Args:
        states: of the last layer, shape (tokens, size).
        logits: of the next token, shape (tokens, vocabulary); None where it has no language head.
        values: of its value head, shape (tokens, labels); None where it has none.
    """

    states: torch.Tensor
    logits: torch.Tensor | None
    values: torch.Tensor | None


class Model:
    """A model and the keys and values of what it has read.

    Args:
        model: with the attention of this package.
        room: the most bytes of keys and values.
        value: its value head, which takes states in float32.

    Attributes:
        device: where it computes.
        pool: the keys and values.
        speaks: whether it has a language head.
        judges: whether it has a value head.
        embedding: the vectors that a state is compared with to get logits, shape (vocabulary,
            size); None where they are packed away.
    """

    def __init__(
        self, model: PreTrainedModel, room: int, value: torch.nn.Module | None = None
    ) -> None:
        self._model = model
        self.device = model.device
        self.pool = Pool(Shape.of(model.config.get_text_config(), model.dtype), room, model.device)
        self._value = value
        self._states = torch.empty(0)
        head = model.get_output_embeddings()
        self.speaks, self.judges = head is not None, value is not None
        table = model.get_input_embeddings() if model.config.tie_word_embeddings else head
        self.embedding: torch.Tensor | None = getattr(table, "weight", None)
        if head is not None:
            # What goes into the language head are the states, whatever the model does afterwards.
            head.register_forward_pre_hook(self._note)

    def read(self, spans: Sequence[Span], wanted: Sequence[int]) -> Seen:
        """Take tokens through the model; their keys and values are in the pool afterwards.

        Args:
            spans: the tokens, one after the other in one pass without padding.
            wanted: the tokens after which it is of interest what the model says, rising.

        Raises:
            NotImplementedError: the model's attention is not what transformers lets one replace.
        """
        memory = Pass(self.pool, spans)
        inputs = {
            "input_ids": self._tensor([[token for span in spans for token in span.tokens]]),
            "position_ids": self._tensor(
                [[span.position + i for span in spans for i in range(len(span.tokens))]]
            ),
            "use_cache": False,
            "memory": memory,
        }
        kept = self._tensor(wanted)
        if self.speaks and wanted:
            logits = self._model(**inputs, logits_to_keep=kept).logits[0]
            states = self._states
        else:
            logits = None
            states = self._model.base_model(**inputs).last_hidden_state[0, kept]
        seen = Seen(states, logits, self._value(states.float()) if self._value else None)
        if memory.layers != len(self.pool.keys):
            raise NotImplementedError("attention of its own")
        return seen

    def _note(self, _head: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        self._states = inputs[0][0]

    def _tensor(self, numbers: Sequence[object]) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.long, device=self.device)
