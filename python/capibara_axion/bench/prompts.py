# SPDX-License-Identifier: Apache-2.0
"""Questions of five kinds, each in Spanish and in English."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import NamedTuple

PROMPTS: dict[str, dict[str, tuple[str, ...]]] = {
    "simple": {
        "es": (
            "¿Cuál es la capital de Australia?",
            "Di tres frutas que maduran en otoño.",
            "¿Cuántos minutos tiene un día?",
            "Escribe una frase corta sobre la lluvia.",
        ),
        "en": (
            "What is the capital of Australia?",
            "Name three fruits that ripen in autumn.",
            "How many minutes does a day have?",
            "Write one short sentence about rain.",
        ),
    },
    "technical": {
        "es": (
            "Explica qué diferencia hay entre la caché de nivel uno y la de nivel dos.",
            "¿Por qué un índice de árbol B acelera las consultas por rango?",
            "Describe cómo TCP evita saturar una red congestionada.",
            "¿Qué se pierde al guardar pesos de 16 bits en enteros de 8 bits?",
        ),
        "en": (
            "Explain the difference between the first and the second level of a cache.",
            "Why does a B-tree index make range queries faster?",
            "Describe how TCP avoids flooding a congested network.",
            "What is lost when weights of 16 bits are kept as integers of 8 bits?",
        ),
    },
    "coding": {
        "es": (
            "Escribe en Python una función que diga si una lista está ordenada.",
            "Corrige este código: for (int i = 0; i <= n; i++) suma += v[i];",
            "Escribe una consulta SQL que cuente los pedidos de cada cliente en 2024.",
            "Escribe una prueba para una función dividir(a, b) que rechaza b = 0.",
        ),
        "en": (
            "Write a Python function that tells whether a list is sorted.",
            "Fix this code: for (int i = 0; i <= n; i++) sum += v[i];",
            "Write an SQL query that counts the orders of each customer in 2024.",
            "Write a test for a function divide(a, b) that refuses b = 0.",
        ),
    },
    "multilingual": {
        "es": (
            "Traduce al francés y al alemán: «El tren sale a las ocho y cuarto».",
            "¿Qué significa la palabra japonesa «komorebi» y cómo se usa?",
            "Traduce al portugués: «Se me olvidaron las llaves en la oficina».",
            "Di «buenos días» en italiano, en chino y en árabe, y cómo se pronuncia.",
        ),
        "en": (
            "Translate into French and German: “The train leaves at a quarter past eight.”",
            "What does the Japanese word “komorebi” mean, and how is it used?",
            "Translate into Portuguese: “I left my keys at the office.”",
            "Say “good morning” in Italian, Chinese and Arabic, and how it is pronounced.",
        ),
    },
    "complex": {
        "es": (
            "Una empresa tiene dos almacenes y tres tiendas. Cada almacén guarda 400 cajas, y las "
            "tiendas necesitan 150, 250 y 300. Llevar una caja cuesta según la distancia. Plantea "
            "el problema, elige un método para resolverlo y razona cada paso.",
            "Un servicio responde en 50 ms de mediana, pero uno de cada cien clientes espera dos "
            "segundos. Propón cinco causas posibles, cómo comprobarías cada una y en qué orden.",
            "Compara vivir en una ciudad grande con vivir en un pueblo, atendiendo al trabajo, la "
            "salud, el transporte y la vida social. Termina con una recomendación argumentada.",
            "Diseña un experimento para averiguar si una pausa de diez minutos cada hora mejora "
            "el estudio. Di qué medirías, cuántas personas harían falta y qué podría confundirte.",
        ),
        "en": (
            "A company has two warehouses and three shops. Each warehouse holds 400 boxes, and the "
            "shops need 150, 250 and 300. Moving a box costs by distance. State the problem, "
            "choose a method to solve it, and give the reason for each step.",
            "A service answers within a median of 50 ms, but one client in a hundred waits for two "
            "seconds. Propose five possible causes, how to check each of them, and in which order.",
            "Compare living in a large city with living in a village, in view of work, health, "
            "transport and social life. End with a recommendation and your reasons for it.",
            "Design an experiment on whether a break of ten minutes every hour helps studying. Say "
            "what to measure, how many people it takes, and what might mislead you.",
        ),
    },
}
KINDS = tuple(PROMPTS)
LANGUAGES = ("es", "en")


class Prompt(NamedTuple):
    """A question, and which of them it is."""

    kind: str
    language: str
    number: int
    text: str


class Prompts:
    """The questions of a run, one after another.

    Kinds and languages take turns; each turn is a round. A server that remembers the beginnings of
    prompts would skip most of its work on a question that comes again, so every one begins with a
    number that no other run has; its length is always the same.

    Args:
        kinds, languages: from `KINDS` and `LANGUAGES`.
        salt: the run's number, below 10000; None: the first question of each kind as it is, always.
    """

    def __init__(self, kinds: Sequence[str], languages: Sequence[str], salt: int | None) -> None:
        self._turns = [(kind, language) for kind in kinds for language in languages]
        self._salt = salt
        self.round = len(self._turns)

    def get(self, index: int) -> Prompt:
        """The question of number `index`, from 0."""
        kind, language = self._turns[index % self.round]
        texts = PROMPTS[kind][language]
        if self._salt is None:
            return Prompt(kind, language, 0, texts[0])
        number = index // self.round % len(texts)
        text = f"{self._salt:04d} {index % 10000:04d}: {texts[number]}"
        return Prompt(kind, language, number, text)


def digest() -> str:
    """Changes with any of the questions."""
    text = json.dumps(PROMPTS, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
