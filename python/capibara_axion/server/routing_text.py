# SPDX-License-Identifier: Apache-2.0
"""What a request is about: media, code, language, length, difficulty. Pure, and bounded in work.

However long a request is, no more is looked at than its newest `MAX_PARTS` messages and parts of
messages; of the newest user's message the first `HEAD_CHARS` and the last `TAIL_CHARS`
characters; of each of the `CONTEXT_TURNS` turns before it the first `CONTEXT_CHARS`; and for the
language the first `LANGUAGE_CHARS` of all that. Lengths of texts are known without reading them.
"""

from __future__ import annotations

import bisect
import itertools
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from capibara_axion.server import routing_languages as languages
from capibara_axion.server import routing_words as signs

MAX_PARTS = 256
HEAD_CHARS = 1536
TAIL_CHARS = 512
CONTEXT_TURNS = 4
CONTEXT_CHARS = 512
LANGUAGE_CHARS = 1024

# Tokenizers of today's models make 4 bytes of English a token, 3 of other languages or of code:
# the estimate rather sends a request to a longer context than has it refused.
BYTES_PER_TOKEN = 3

_MEDIA = ("image", "video", "audio")

# No context is longer; and what a client may ask for has no bound.
_MOST_TOKENS = 2**31

# A shorter message without any signs of its own ("and in two lines?") is taken to go on with the
# conversation before it.
_FOLLOW_UP_CHARS = 100

# More signs of code are asked for in a longer text, where some occur by chance, and in a request to
# translate from or to a human language, which may well mention code.
_ENOUGH_CODE = 3
_MORE_CODE, _MORE_CODE_EVERY_WORDS = 3, 60
_ENOUGH_TECHNICAL = 2
# In a longer text a quotation is seldom what is asked about.
_QUOTING_CHARS = 300
# Letters of words that speak of difficult matters: of abstract nouns, and of any.
_ABSTRACT_WORD, _LONG_WORD = 8, 12
_MEDIUM_WORDS, _MANY_WORDS = 20, 40

# What makes a text foreign: the share of its bytes in letters of another script; or how much speaks
# for another language (a word that no other language here has counts 1), and how many times as much
# as for English or Spanish.
_FOREIGN_SHARE = 0.15
_FOREIGN_WORDS = 0.5
_FOREIGN_LEAD = 1.2

_WORD = re.compile(r"[0-9a-zà-öø-ɏḁ-ỿ]+[+#]*")


@dataclass(frozen=True)
class Request:
    """What routing knows of a request.

    Attributes:
        media: what the newest part that is not text is: image, video or audio; or None.
        text: excerpt of the newest user's message, or of the prompt.
        context: excerpt of what was said before it.
        prompt_tokens: estimate of the prompt's length.
        answer_tokens: how many tokens are asked for at most; 0 if the request does not say.
    """

    media: str | None
    text: str
    context: str
    prompt_tokens: int
    answer_tokens: int

    @property
    def tokens(self) -> int:
        """What a context has to hold."""
        return self.prompt_tokens + self.answer_tokens

    @property
    def continues(self) -> bool:
        """It may be a follow-up, to be understood from its context."""
        return bool(self.context) and len(self.text) < _FOLLOW_UP_CHARS


def read_request(fields: Mapping[str, Any]) -> Request:
    """Takes from the body of a completion what routing looks at.

    Args:
        fields: the body's JSON object: `messages` of a chat completion, or `prompt` of a text
            completion. What does not have the expected type is passed over.
    """
    messages = fields.get("messages")
    if isinstance(messages, list):
        turns, media = _turns(messages)
    else:
        turns, media = [("user", _texts(_prompt(fields)))], None
    newest = next((i for i, (role, _) in enumerate(turns) if role == "user"), 0)
    text = _excerpt(turns[newest][1], HEAD_CHARS, TAIL_CHARS) if turns else ""
    before = [_excerpt(texts, CONTEXT_CHARS, 0) for _, texts in turns[newest + 1 :][:CONTEXT_TURNS]]
    context = "\n".join(before)
    chars = sum(len(part) for _, texts in turns for part in texts)
    tokens = int(chars * _bytes_per_char(text + context) / BYTES_PER_TOKEN)
    return Request(media, text, context, tokens + _prompt_ids(fields), _answer_tokens(fields))


def _turns(messages: Sequence[Any]) -> tuple[list[tuple[Any, list[str]]], str | None]:
    """Each message's role and texts, newest first; and what media the newest part with any has."""
    turns: list[tuple[Any, list[str]]] = []
    media = None
    left = MAX_PARTS
    for message in reversed(messages[-MAX_PARTS:]):
        if left <= 0:
            break
        if not isinstance(message, dict):
            continue
        role, content = message.get("role"), message.get("content")
        left -= 1
        if isinstance(content, str):
            turns.append((role, [content]))
        elif isinstance(content, list):
            parts = content[:left]
            left -= len(parts)
            media = media or next(filter(None, map(_media_of, parts)), None)
            turns.append((role, _texts(parts)))
    return turns, media


def _texts(parts: Sequence[Any]) -> list[str]:
    texts = [part.get("text") if isinstance(part, dict) else part for part in parts]
    return [text for text in texts if isinstance(text, str)]


def _media_of(part: Any) -> str | None:
    if not isinstance(part, dict):
        return None
    declared = part.get("type")
    name = declared[:32] if isinstance(declared, str) else ""
    return next((kind for kind in _MEDIA if kind in name or f"{kind}_url" in part), None)


def _prompt(fields: Mapping[str, Any]) -> Sequence[Any]:
    prompt = fields.get("prompt")
    return prompt[:MAX_PARTS] if isinstance(prompt, list) else [prompt]


def _prompt_ids(fields: Mapping[str, Any]) -> int:
    """How many token ids the prompt has, if it is given as such."""
    prompt = fields.get("prompt")
    if not isinstance(prompt, list) or not prompt:
        return 0
    if isinstance(prompt[0], list):
        return max(len(ids) for ids in prompt[:MAX_PARTS] if isinstance(ids, list))
    return len(prompt) if isinstance(prompt[0], int) else 0


def _answer_tokens(fields: Mapping[str, Any]) -> int:
    for name in ("max_completion_tokens", "max_tokens"):
        wanted = fields.get(name)
        if isinstance(wanted, int) and wanted > 0:
            return min(wanted, _MOST_TOKENS)
    return 0


def _bytes_per_char(text: str) -> float:
    if text.isascii():
        return 1.0
    return len(text.encode("utf-8", "surrogatepass")) / len(text)


def _excerpt(texts: Sequence[str], head: int, tail: int) -> str:
    if sum(map(len, texts)) <= head + tail:
        whole = "\n".join(texts)
    else:
        first = "\n".join(text[:head] for text in texts[:4])[:head]
        last = "\n".join(text[-tail:] for text in texts[-4:])[-tail:] if tail else ""
        whole = f"{first}\n{last}"
    return unicodedata.normalize("NFC", whole)


class Signs:
    """The signs that a text gives of itself. Each is found when it is asked for, once."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._folded = signs.fold(text)
        self._words = _WORD.findall(self._folded)
        self._distinct = frozenset(self._words)
        self._pairs = frozenset(map(" ".join, itertools.pairwise(self._words)))

    @cached_property
    def code(self) -> str | None:
        """What makes this a request for code or about code; None if nothing does."""
        found = _weighed(self._distinct, signs.CODE_WORDS)
        found |= dict.fromkeys(self._pairs & signs.CODE_PAIRS, _ENOUGH_CODE)
        if piece := _piece_of_code_wanted(self._words):
            found[f"{piece} wanted"] = _ENOUGH_CODE
        found |= {shape.name: shape.weight for shape in signs.CODE_SHAPES if self._has(shape)}
        if not self._text.isascii():
            found |= {stem: n for stem, n in signs.CODE_STEMS.items() if stem in self._folded}
        enough = _ENOUGH_CODE + min(_MORE_CODE, len(self._words) // _MORE_CODE_EVERY_WORDS)
        if self.translation:
            enough += _MORE_CODE
        return _strongest(found) if sum(found.values()) >= enough else None

    def _has(self, shape: signs.Shape) -> bool:
        if not any(mark in self._text for mark in shape.marks):
            return False
        return shape.pattern is None or shape.pattern.search(self._text) is not None

    @cached_property
    def translation(self) -> str | None:
        """A wish for another human language, whatever language it is written in; or None."""
        if named := self._distinct & languages.LANGUAGE_NAMES:
            if self._distinct & languages.TRANSLATE_WORDS:
                return "translation, " + min(named)
            if asked := self._pairs & languages.ASKED_FOR:
                return "asked: " + min(asked)
            for pair in sorted(self._pairs & languages.PERHAPS_ASKED_FOR):
                _, found, rest = self._folded.partition(pair)
                if found and languages.NO_NOUN_FOLLOWS.match(rest):
                    return "asked: " + pair
        if languages.SAY.search(self._folded):
            return "how to say"
        if len(self._text) <= _QUOTING_CHARS and self._distinct & languages.MEANING:
            for quoted in languages.QUOTED.findall(self._text):
                if language := _latin_language(quoted):
                    return f"{language} quoted"
        return None

    @cached_property
    def language(self) -> str | None:
        """A language other than English and Spanish, or a script other than Latin; or None."""
        text = self._text[:LANGUAGE_CHARS]
        return _script(text) or _latin_language(text)

    @cached_property
    def technical(self) -> str | None:
        """What asks for an explanation, an analysis, a document or several steps; or None."""
        found = _weighed(self._distinct, signs.TECHNICAL_WORDS)
        found |= dict.fromkeys(self._pairs & signs.TECHNICAL_PAIRS, _ENOUGH_TECHNICAL)
        if signs.FORMULA.search(self._folded):
            found["formula"] = _ENOUGH_TECHNICAL
        score = sum(found.values())
        score += min(2, sum(map(_is_abstract, self._distinct)))
        score += (len(self._words) >= _MEDIUM_WORDS) + (len(self._words) >= _MANY_WORDS)
        score -= 2 * bool(self._distinct & signs.CASUAL_WORDS)
        return (_strongest(found) or "wording") if score >= _ENOUGH_TECHNICAL else None


def _piece_of_code_wanted(words: Sequence[str]) -> str | None:
    """What is to be written or mended, if that is a piece of code."""
    for index, word in enumerate(words):
        if word not in signs.CODE_PIECES and word not in signs.PROGRAMS:
            continue
        if " ".join(words[index : index + 3]) in signs.NOT_CODE:
            continue
        before = [w for w in words[max(0, index - 5) : index] if w not in signs.ARTICLES]
        for verb, between in zip(before[:-3:-1], ("", *before[-1:]), strict=False):
            write = verb in signs.WRITE or verb.startswith(signs.WRITE_BEGINNINGS)
            mend = verb in signs.MEND or verb.startswith(signs.MEND_BEGINNINGS)
            if word in signs.CODE_PIECES and (write or mend) and between not in signs.LINKS:
                return word
            if word in signs.PROGRAMS and write and between in signs.BEFORE_PROGRAMS:
                return word
    return None


def _is_abstract(word: str) -> bool:
    return len(word) >= _LONG_WORD or (
        len(word) >= _ABSTRACT_WORD and word.endswith(signs.ABSTRACT_ENDINGS)
    )


def _strongest(found: Mapping[str, int]) -> str:
    return ", ".join(sorted(found, key=lambda name: (-found[name], name))[:3])


def _weighed(words: Iterable[str], weights: Mapping[str, int]) -> dict[str, int]:
    return {word: weights[word] for word in words if word in weights}


def _script(text: str) -> str | None:
    if text.isascii():
        return None
    sizes: dict[str, int] = {}
    for run in languages.OTHER_SCRIPTS.findall(text):
        name = _SCRIPT_NAMES[bisect.bisect(_SCRIPT_STARTS, ord(run[0])) - 1]
        if name != "Greek" or len(run) >= languages.FEWEST_GREEK:
            # A Chinese character says as much as three letters, and has as many bytes.
            sizes[name] = sizes.get(name, 0) + len(run.encode("utf-8", "surrogatepass"))
    if not sizes:
        return None
    every = len(text.encode("utf-8", "surrogatepass"))
    if sum(sizes.values()) < _FOREIGN_SHARE * every:
        return None
    return max(sizes, key=lambda name: sizes[name])


def _latin_language(text: str) -> str | None:
    """The language, neither English nor Spanish, that most of the words and letters speak for."""
    text = text.lower()
    scores = dict.fromkeys(languages.LATIN_WORDS, 0.0)
    for word in set(_WORD.findall(text)) & _WORD_SHARES.keys():
        for language, share in _WORD_SHARES[word]:
            scores[language] += share
    if not text.isascii():
        for letter in set(text) & _LETTER_SHARES.keys():
            for language, share in _LETTER_SHARES[letter]:
                scores[language] += share
    best = max(scores, key=lambda language: scores[language])
    usual = max(scores[language] for language in languages.SPOKEN_BY_ALL)
    if best in languages.SPOKEN_BY_ALL or scores[best] < max(_FOREIGN_WORDS, _FOREIGN_LEAD * usual):
        return None
    return best


def _shares(groups: Mapping[str, Sequence[str]]) -> dict[str, tuple[tuple[str, float], ...]]:
    """For each word or letter the languages that have it, each with an equal share of one."""
    having: dict[str, list[str]] = {}
    for language, members in groups.items():
        for member in members:
            having.setdefault(member, []).append(language)
    return {
        member: tuple((language, 1 / len(languages)) for language in languages)
        for member, languages in having.items()
    }


_WORD_SHARES = _shares({name: words.split() for name, words in languages.LATIN_WORDS.items()})
_LETTER_SHARES = _shares({name: list(letters) for name, letters in languages.LATIN_LETTERS.items()})
_SCRIPT_STARTS, _SCRIPT_NAMES = zip(*languages.SCRIPT_STARTS, strict=True)
