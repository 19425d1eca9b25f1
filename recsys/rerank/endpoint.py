"""The endpoint judge: a server's own reranker scores the candidates (the endpoints `rerank` and `score`; a
cross-encoder such as BGE or a Qwen reranker, served by vLLM and others). The query is what is known of the user."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np

from recsys.errors import SpecError
from recsys.lm.usage import behind, estimate
from recsys.protocols import LanguageModel, RelevanceModel
from recsys.rerank.evidence import Evidence
from recsys.rerank.fusion import Array
from recsys.rerank.prompt import ENDPOINT, About, Prompt
from recsys.rerank.prompted import Case, Prompted, PromptedConfig


class EndpointConfig(PromptedConfig):
    """How the reranker is built that asks a server's reranker."""

    sections: ClassVar[tuple[str, ...]] = ENDPOINT

    kind: Literal["endpoint"] = "endpoint"
    prompt: str = "endpoint-v1"
    candidate: Literal["title", "text"] = "text"

    def judge(self, prompt: Prompt, lm: LanguageModel, evidence: Evidence) -> "EndpointJudge":
        """See `PromptedConfig.judge`."""
        if not isinstance(behind(lm), RelevanceModel):
            raise SpecError("reranker.kind = 'endpoint' needs a server with a reranker: set lm.kind = 'remote'")
        return EndpointJudge(self, prompt, lm, evidence)


class EndpointJudge(Prompted):
    """Its opinion of a candidate is the server's score."""

    kind: ClassVar[str] = "endpoint"
    config_type: ClassVar[type[PromptedConfig]] = EndpointConfig

    config: EndpointConfig

    def judge(self, cases: Sequence[Case]) -> list[Array | None]:
        """See `Prompted.judge`."""
        lm = self.lm
        if not isinstance(lm, RelevanceModel):
            raise SpecError(f"{lm.model_id}: has no endpoint that scores documents")
        queries = [self.prompt.render(case.about) for case in cases]
        documents = [[self._document(text) for text in case.items] for case in cases]
        sizes = [
            (sum(estimate(query) + estimate(text) for text in row), 0)
            for query, row in zip(queries, documents, strict=True)
        ]
        found = self.paid(queries, sizes, lambda some: lm.relevance(some, documents[: len(some)]))
        return [None if scores is None else np.array(scores, dtype=np.float64) for scores in found]

    def fits(self, case: Case, about: About, room: int) -> bool:
        """See `Prompted.fits`: the query and the longest document."""
        (longest,) = self.longest_of(case.items)
        return self.within(self.prompt.render(about) + self._document(longest), room)

    def _document(self, text: str) -> str:
        return self.prompt.render_answer(text, self.longest)
