# SPDX-License-Identifier: Apache-2.0
"""Which expert answers a request for `model: "auto"`: pure rules, under a millisecond.

The first of these rules that applies says which role is wanted:

1. a part of the messages is not text (image, audio, video)      -> multimodal
2. code is given or asked for                                    -> coding
3. another language than English and Spanish, or a translation   -> multilingual
4. too long for most contexts (`LONG_TOKENS`)                    -> multimodal
5. explanation, analysis, documents, medium length               -> technical
6. anything else                                                 -> general

An expert's role follows from the words of its `domain` (`ROLE_OF`). Where no expert has the wanted
role, or the request is longer than its context, the next in `FALLBACKS` has it. Among experts of
equal suitability the one that is loaded, then the least busy, then that of the highest priority is
chosen. Between general and technical the choice is soft: a loaded expert of one is taken in place
of one of the other that is not. Media, code and language never give way to what is loaded.
"""

from __future__ import annotations

import enum
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from capibara_axion.server.routing_text import Request, Signs, read_request

LONG_TOKENS = 8192
_HEADER_CHARS = 255


class Role(str, enum.Enum):
    """What an expert is good at."""

    GENERAL = "general"
    TECHNICAL = "technical"
    CODING = "coding"
    MULTIMODAL = "multimodal"
    MULTILINGUAL = "multilingual"
    OTHER = "other"


ROLE_OF = {
    "general": Role.GENERAL,
    "chat": Role.GENERAL,
    "technical": Role.TECHNICAL,
    "reasoning": Role.TECHNICAL,
    "coding": Role.CODING,
    "code": Role.CODING,
    "programming": Role.CODING,
    "multimodal": Role.MULTIMODAL,
    "vision": Role.MULTIMODAL,
    "multilingual": Role.MULTILINGUAL,
    "translation": Role.MULTILINGUAL,
}
"""Words of a `domain`, such as `multimodal_expert`; a domain of other words is of no known role."""

FALLBACKS = {
    Role.GENERAL: (Role.OTHER, Role.TECHNICAL, Role.MULTILINGUAL, Role.MULTIMODAL, Role.CODING),
    Role.TECHNICAL: (Role.GENERAL, Role.MULTIMODAL, Role.MULTILINGUAL, Role.CODING, Role.OTHER),
    Role.CODING: (Role.TECHNICAL, Role.GENERAL, Role.MULTIMODAL, Role.MULTILINGUAL, Role.OTHER),
    Role.MULTILINGUAL: (Role.MULTIMODAL, Role.TECHNICAL, Role.GENERAL, Role.CODING, Role.OTHER),
    Role.MULTIMODAL: (Role.TECHNICAL, Role.MULTILINGUAL, Role.GENERAL, Role.CODING, Role.OTHER),
}
"""Who stands in for whom, best first. Large multimodal models know many languages."""

_SOFT = frozenset({Role.GENERAL, Role.TECHNICAL})
_DOMAIN_WORD = re.compile(r"[a-z]+")


@dataclass(frozen=True)
class Candidate:
    """An expert that a request may go to.

    Attributes:
        name: its model name.
        domain: as in its configuration; its role follows from it.
        priority: as in its configuration; higher is preferred.
        resident: it is loaded and takes requests at once.
        max_model_len: its context in tokens, or None if that is not known.
        busy: requests that wait for it or run in it.
    """

    name: str
    domain: str = ""
    priority: int = 0
    resident: bool = False
    max_model_len: int | None = None
    busy: int = 0


@dataclass(frozen=True)
class Decision:
    """Where a request goes.

    Attributes:
        model: name of the chosen candidate.
        role: what the request asked for; the candidate may be of another.
        reasons: what decided, in order, for people to read. They quote our word lists, never the
            request.
    """

    model: str
    role: Role
    reasons: tuple[str, ...]

    def header(self) -> str:
        """Model and reasons as the value of an HTTP header: printable ASCII, at most 255 bytes."""
        text = unicodedata.normalize("NFKD", "; ".join((self.model, *self.reasons)))
        return "".join(letter for letter in text if " " <= letter <= "~")[:_HEADER_CHARS].rstrip()


def role_of(domain: str) -> Role:
    """The role that a `domain` names; `Role.OTHER` if it names none that is known."""
    words = _DOMAIN_WORD.findall(domain.lower())
    return next((ROLE_OF[word] for word in words if word in ROLE_OF), Role.OTHER)


def route(fields: Mapping[str, Any], candidates: Sequence[Candidate]) -> Decision:
    """Chooses who answers a request.

    Args:
        fields: JSON object of a chat or text completion. Any content will do.
        candidates: the experts, at least one; of equal ones the first is chosen.

    Raises:
        ValueError: there is no candidate.
    """
    if not candidates:
        raise ValueError("candidates: expected at least one expert, got none")
    request = read_request(fields)
    role, why = _wanted(request)
    order = (role, *FALLBACKS[role])

    def unsuitability(candidate: Candidate) -> tuple[float, ...]:
        own = role_of(candidate.domain)
        place = order.index(own)
        return (
            request.media is not None and own is not Role.MULTIMODAL,
            _shortage(candidate, request.tokens),
            0 if {role, own} <= _SOFT else place,
            not candidate.resident,
            place,
            candidate.busy,
            -candidate.priority,
        )

    chosen = min(candidates, key=unsuitability)
    return Decision(
        chosen.name, role, (why, *_departures(role, request.tokens, chosen, candidates))
    )


def _wanted(request: Request) -> tuple[Role, str]:
    """The role for a request, and why."""
    if request.media is not None:
        return Role.MULTIMODAL, f"{request.media} given"
    found = _by_text(Signs(request.text))
    if found is None and request.continues:
        found = _by_text(Signs(request.context))
    if found is not None and found[0] is not Role.TECHNICAL:
        return found
    if request.prompt_tokens >= LONG_TOKENS:
        return Role.MULTIMODAL, f"long: about {request.prompt_tokens} tokens"
    return found or (Role.GENERAL, "general: none of the other signs")


def _by_text(signs: Signs) -> tuple[Role, str] | None:
    if signs.code:
        return Role.CODING, f"code: {signs.code}"
    if language := signs.language or signs.translation:
        return Role.MULTILINGUAL, f"language: {language}"
    if signs.technical:
        return Role.TECHNICAL, f"technical: {signs.technical}"
    return None


def _shortage(candidate: Candidate, tokens: int) -> int:
    """Tokens by which the request exceeds the candidate's context."""
    return max(0, tokens - candidate.max_model_len) if candidate.max_model_len else 0


def _departures(
    role: Role, tokens: int, chosen: Candidate, candidates: Sequence[Candidate]
) -> list[str]:
    """Why the chosen one is not of the wanted role, and what may be wrong with it."""
    reasons = []
    if role_of(chosen.domain) is not role:
        wanted = [candidate for candidate in candidates if role_of(candidate.domain) is role]
        if not wanted:
            reasons.append(f"no {role.value} expert")
        elif all(_shortage(candidate, tokens) for candidate in wanted):
            reasons.append(f"about {tokens} tokens exceed the {role.value} expert's context")
        else:
            reasons.append(f"loaded, the {role.value} expert is not")
    if _shortage(chosen, tokens):
        reasons.append(f"about {tokens} tokens exceed every context")
    return reasons
