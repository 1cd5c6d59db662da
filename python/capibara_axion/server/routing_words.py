# SPDX-License-Identifier: Apache-2.0
"""The signs of code and of technical questions that `routing_text` counts.

Words are folded (`fold`). A weight counts once for every distinct word, pair of words or shape of
the text; what sums are enough is said in `routing_text`, and how well that works is measured by
`benchmarks/routing.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_PLAIN = tuple(zip("áàâãäåéèêëíìîïóòôõöúùûüçñ", "aaaaaaeeeeiiiiooooouuuucn", strict=True))


def fold(text: str) -> str:
    """Lower case without the accents that people leave out when they type in a hurry."""
    text = text.lower()
    if not text.isascii():
        for accented, plain in _PLAIN:  # far faster than `str.translate`
            text = text.replace(accented, plain)
    return text


def words(text: str) -> frozenset[str]:
    """The folded words of a text, or its phrases if they are separated by bars."""
    folded = fold(text)
    parts = folded.split("|") if "|" in folded else folded.split()
    return frozenset(" ".join(part.split()) for part in parts)


def _weights(table: dict[int, str]) -> dict[str, int]:
    return {word: weight for weight, text in table.items() for word in words(text)}


# A weight of 3 is enough by itself. Words that everyday language uses too have less: "python" and
# "function" make code only together, "class" and "rust" not even then.
CODE_WORDS = _weights(
    {
        3: """
        javascript typescript golang kotlin haskell cobol fortran vba php sql plsql mysql sqlite
        bash powershell zsh awk grep regex regexp dockerfile makefile cmake cmakelists html css
        scss sass flexbox div jquery django fastapi numpy matplotlib pytest junit mypy eslint npm
        pip webpack git gcc clang gdb valgrind kubectl ansible terraform nginx crontab c++ c# f#
        refactor refactoring refactoriza refactorizar refactorización segfault nullptr stdout
        stderr codebase pseudocode pseudocódigo leetcode pygame
        """,
        2: """
        python pythonie pythonu pythonda pythonban java scala dart lua perl matlab groovy pandas
        flask react angular vue svelte laravel nodejs js ts jsx tsx pytorch tensorflow selenium
        compile compiles compila compilar compilación debug debugging depura depurar depuración
        recursive recursively recursiva recursivo recursivamente recursion subroutine async await
        callback endpoint endpoints fetch arrays pointer pointers puntero punteros boolean
        booleano bucle bucles docker localhost unittest macro undefined snippet
        syntax sintaxis parse parser iterate iterating sed ssh diff whitespace
        """,
        1: """
        rust ruby swift kubernetes excel node postgres postgresql mongodb linux code codes código
        códigos codice kod kód kodu cod kode function functions función funciones fonction
        funktion funzione função functie funkci funkce funkcja funkcję funcție funcția fonksiyon
        fungsi hàm script scripts program programa programe programme programm programma programar
        class classes clase clases method methods método métodos attribute attributes atributo
        atributos inheritance herencia algorithm algoritmo bug bugs commit branch merge push
        repository repositorio repo query consulta table tabla index índice loop loops string
        strings cadena variable variables integer entero dictionary diccionario diccionarios dict
        sort ordena ordenar ordeno binary binario stack pila queue tree árbol linked
        hash server api rest http exception excepción error tests unitarios unit compiler library
        librería implement implementa implementar thread array json yaml
        xml csv
        """,
    }
)

# Code in scripts whose words are not cut out one by one.
CODE_STEMS = {
    "функци": 1,
    "скрипт": 1,
    "программ": 1,
    "код": 1,
    "συνάρτηση": 1,
    "κώδικα": 1,
    "פונקציה": 1,
    "קוד": 1,
    "دالة": 1,
    "كود": 1,
    "تابع": 1,
    "कोड": 1,
    "फ़ंक्शन": 1,
    "फंक्शन": 1,
    "函数": 2,
    "函數": 2,
    "代码": 2,
    "程式碼": 2,
    "编程": 2,
    "関数": 2,
    "コード": 1,
    "スクリプト": 2,
    "함수": 2,
    "코드": 2,
    "스크립트": 2,
    "파이썬": 2,
    "자바스크립트": 3,
}

_PROGRAMMED = words("python java rust ruby scala dart perl lua matlab node react flask pandas")
_IN = words("in en em w v with con using avec mit")
CODE_PAIRS = frozenset(f"{word} {name}" for word in _IN for name in _PROGRAMMED) | words(
    """
    regular expression|expresión regular|pull request|unit test|unit tests|tests unitarios
    |programa un|programa una|fonksiyon yaz|fonksiyonu yaz
    """
)

# How people ask for something made or mended, in the languages here that put the verb first.
WRITE = words(
    """
    write create implement develop generate crea créame crear cree haz hazme genera genere crie
    criar schrijf maak napiš scrie viết
    """
)
WRITE_BEGINNINGS = tuple(words("escrib implement ecri schreib erstell scriv escrev napis buat"))
MEND = words("fix build code debug complete optimize optimise need give completa dame")
MEND_BEGINNINGS = tuple(words("necesit corrig corrij depur"))
# What they ask for. A program may as well be one of concerts: with a language's name at most.
CODE_PIECES = words(
    """
    function subroutine decorator parser regex query endpoint component snippet script función
    funciones decorador bucle fonction funktion funzione função functie funkcję funkci funcție
    fungsi hàm skript
    """
)
PROGRAMS = words(
    "code código program programa programme programm programma algorithm algoritmo algorithme"
)
BEFORE_PROGRAMS = _PROGRAMMED | {""}
# Passed over between the verb and what is wanted; not to stand there; and not to follow.
ARTICLES = words(
    "a an the this some un una esta este el la une ein eine einen um uma o een me mir sie us nos"
)
LINKS = words("about on of to for in sobre de del para en")
NOT_CODE = words("script for a|script for an|code of conduct|código de conducta")

_FILE_TYPES = "py|ipynb|js|ts|jsx|tsx|java|kt|cpp|cc|hpp|rs|go|rb|cs|sql|sh|css|toml|ya?ml|json|c|h"
_C_FAMILY = "const |var |auto |int |float |double |bool "


@dataclass(frozen=True)
class Shape:
    """A sign of code that is no word.

    Attributes:
        marks: one of them must be there; they are found fast.
        pattern: what must then be found, or None if a mark is enough. It has no repetition inside
            another, and a bound where one could begin anywhere, so that the time that it takes
            grows with the text's length and no faster.
    """

    name: str
    weight: int
    marks: tuple[str, ...]
    pattern: re.Pattern[str] | None


def _shape(name: str, weight: int, marks: str, pattern: str | None = None) -> Shape:
    compiled = re.compile(pattern, re.M) if pattern else None
    return Shape(name, weight, tuple(marks.split("|")), compiled)


CODE_SHAPES = (
    _shape("fenced block", 3, "```"),
    _shape("preamble", 3, "#include|#!/|<?php|public static |public class |public void |std::"),
    _shape(
        "definition",
        3,
        "def |fn |func |lambda ",
        r"(?:def|fn|func) \w{1,60}[(<]|lambda \w{1,40}:",
    ),
    _shape("function", 3, "function ", r"function \w{0,60}\("),
    _shape(
        "import",
        3,
        "import |use ",
        r"^[ \t]{0,40}(?:import [\w.{}*]+(?: as \w+)?;?$|from [\w.]+ import |use \w+::)",
    ),
    _shape(
        "error",
        3,
        "Error|Exception|error[|\tat |  at ",
        r"\b[A-Z]\w{0,40}(?:Error|Exception)\b|Exception in thread|error\[E\d"
        r"|[ \t]at [\w.$]{1,80}\(",
    ),
    _shape(
        "error message",
        3,
        "Traceback (most|panicked at|egmentation fault|core dumped|undefined reference",
    ),
    _shape("declaration", 3, _C_FAMILY, rf"\b(?:{_C_FAMILY})\w{{1,40}} ?[=;[]"),
    _shape("SQL", 3, "SELECT |elect *|INSERT INTO |CREATE TABLE "),
    _shape(
        "command",
        3,
        "$ |sudo |pip install |docker |cargo |apt ",
        r"^[ \t]{0,40}(?:\$ |sudo |pip install |docker |cargo |apt )",
    ),
    # Names that are everyday words or letters: only with their capital.
    _shape(
        "named language",
        3,
        "n C|n R|n Go|n Swift|th C|th R|th Go|th Swift",
        r"\b(?:[Ii]n|[Ee]n|[Cc]on|[Ww]ith) (?:C|R|Go|Swift)\b(?![+#&'-])",
    ),
    _shape("file name", 2, ".", rf"\.(?<=\w\.)(?:{_FILE_TYPES})\b"),
    _shape("inline code", 2, "`", r"`[^`\n]{1,80}`"),
    _shape(
        "control flow",
        2,
        "for (|for(|while(|while (|in range(|if (|if(",
        r"\b(?:for|while) ?\(|\bin range\(|\bif ?\([^\n]{1,40}\) ?\{",
    ),
    _shape("line end", 2, ";|{|}", r"[;{}][ \t]{0,8}$"),
    _shape("call", 1, "(", r"\((?<=\w\()(?!s\))"),
    _shape("operator", 1, "==|!=|&&|=>|->|::|+=|++|</"),
    _shape("identifier", 1, "_", r"_[a-z](?<=[a-z]_[a-z])"),
)

# Explanation, analysis, documents, reasoning: 2 are enough.
TECHNICAL_WORDS = _weights(
    {
        2: """
        explain explains explica explicar explícame explícalo explique analyse analyze analysis
        analiza analizar análisis compare comparison comparativa compara comparar derive prove
        demuestra demostrar deduce discuss debate essay ensayo informe documentation documentación
        document documento specification especificación architecture arquitectura complexity
        complejidad reasoning razonamiento razona evaluate evalúa valora assess critically outline
        thesis tesis whitepaper tradeoffs justify justifica methodology metodología summarise
        summarize solve resuelve detailed detallado detallada interpret interpreta why consiste
        """,
        1: """
        describe how cómo differ differs differences difference diferencia diferencias
        advantages disadvantages ventajas desventajas inconvenientes pros cons versus vs causes
        causas consequences consecuencias effects efectos factors factores impact impacto role
        arguments evidence draft redacta elabora report resume strategy estrategia plan design
        diseña steps risks riesgos budget presupuesto function función formula fórmula example
        examples ejemplo ejemplos importance importancia relationship relación mechanism mecanismo
        influyen afecta affect calculate calcula calcular work works funciona funcionan happens
        letter carta policy procedure procedimiento guide guía words palabras
        algorithm algoritmo algoritmos protocol protocolo processor procesador memory memoria cache
        caché network red redes database databases server servers servidor encryption cifrado
        cryptography operating kernel thread process compiler software hardware model modelo
        neural training learning aprendizaje inference cloud nube migration migración microservices
        latency bandwidth throughput data datos quantum cuántica cuántico entropy entropía
        thermodynamics termodinámica engine motor battery batteries voltage electric eléctrico
        eléctricos energy energía nuclear solar equation ecuación integral derivative theorem
        teorema probability probabilidad statistics estadística matrix matriz vector molecular
        protein proteína proteínas cell cells células hormone hormones glucose glucosa insulin
        insulina enzyme metabolism metabolismo vaccine vaccines vacuna vacunas immune inflation
        inflación economy economía económicas tax fiscal regulation crisis law ley legal contract
        theory teoría physics física chemistry química biology biología mathematics matemáticas
        """,
    }
)
TECHNICAL_PAIRS = words(
    """
    by step|a paso|in detail|en detalle|con detalle|difference between|differences between
    |diferencia entre|diferencias entre|hay entre|por qué|trade offs|show your|root cause|walk me
    """
)
FORMULA = re.compile(r"[\^=](?<=[\w)][\^=]| =)[ (-]{0,2}[\dx]")
# Endings of the abstract nouns of English and Spanish.
ABSTRACT_ENDINGS = tuple(
    words("tion sion ity ics logy ism ence ency ance ment ción dad ismo logía encia ancia miento")
)
# What asks for something short and light.
CASUAL_WORDS = words(
    """
    joke jokes chiste chistes hi hello hey hola thanks gracias birthday cumpleaños short corto corta
    recommend recomiéndame recomiendas suggest gift regalo movie film película funny
    """
)
