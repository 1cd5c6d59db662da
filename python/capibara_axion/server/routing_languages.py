# SPDX-License-Identifier: Apache-2.0
"""How `routing_text` tells languages: those of Aya Expanse, and any in a script of its own."""

from __future__ import annotations

import re

from capibara_axion.server.routing_words import words

_FOREIGN_EN = """
    arabic chinese mandarin cantonese czech dutch french german greek hebrew hindi indonesian
    italian japanese korean persian farsi polish portuguese romanian russian turkish ukrainian
    vietnamese catalan basque galician swedish norwegian danish finnish hungarian bulgarian thai
    swahili latin
"""
_FOREIGN_ES = """
    árabe chino mandarín checo holandés neerlandés francés alemán griego hebreo hindi indonesio
    italiano japonés coreano persa polaco portugués rumano ruso turco ucraniano vietnamita catalán
    euskera gallego sueco noruego danés finés húngaro búlgaro tailandés suajili latín
"""
LANGUAGE_NAMES = words(f"{_FOREIGN_EN} {_FOREIGN_ES} english spanish inglés español castellano")
# Pairs of words that ask for a language; in English, if the text does not go on with a noun: "in
# French cuisine" asks for no French.
ASKED_FOR = frozenset(
    [f"{word} {name}" for word in words("en a al mi") for name in words(_FOREIGN_ES)]
    + [f"{name} {word}" for word in words("word words phrase") for name in words(_FOREIGN_EN)]
)
_BEFORE_EN = words("in into to from my formal informal polite simple plain brazilian")
PERHAPS_ASKED_FOR = frozenset(f"{w} {name}" for w in _BEFORE_EN for name in words(_FOREIGN_EN))
NO_NOUN_FOLLOWS = re.compile(
    r"\s*(?:[^\w\s]|$|(?:and|or|for|to|please|that|with|of|about|using|from|by|as|but|when|if|is|so"
    r"|only|instead|the|an?|my|your|this)\b)"
)
TRANSLATE_WORDS = words(
    """
    translate translates translation translations translating traduce traduces tradúceme tradúcelo
    traducir traducción traducciones traduzcas localize localise localiza
    """
)
SAY = re.compile(
    r"how (?:do|would|can) (?:you|i|we|one) say\b|how to say\b|como se (?:dice|pronuncia)\b"
)
# With one of these, a quotation is what the request is about.
MEANING = words("mean means significa decir correct corrige proofread")
QUOTED = re.compile(r"""['"«“‘]([^'"»”’\n]{2,200})['"»”’]""")

# The commonest short words of each language, greetings, and how requests begin.
LATIN_WORDS = {
    "English": """
        the of and to is in it you that was for on are with as i be at one have this from or had by
        but what all were we when your can there use an each which do how their if will up other
        about out many then them these so some would make like into time has more go see no could my
        than who its now did get a me he she not please tell give write explain hi hello hey thanks
        thank good morning where why does should our us two been after using they very people any
        just also through without only new both first may while since until never always again let
        really am don got way something best most much know want need help
        """,
    "Spanish": """
        el la los las de del que y a en un una unos unas se no por con su sus para como al lo le les
        más pero este esta estos estas ese esa si me mi tu ya muy sin sobre también hasta entre
        desde eso ni nos es son fue está están hay ser hacer qué cómo cuál cuáles cuánto cuántos
        cuántas quién dónde cuándo porque hola gracias buenos buenas días noches dime dame haz hazme
        escribe explica quiero necesito puedo puedes tengo o e cual quien cuando donde cuanto te sí
        ha han todo todos cada puede esto vida mucho muchas bien da vez ver tanto nuestro mejor va
        forma antes otro otra otros algo menos tan siempre hace uno dos tener primera ahora nada
        ellos ella él sois somos era quiénes ningún mejores cuanta quienes
        """,
    "French": """
        le la les de des du un une et est en que qui dans pour pas ne sur au aux avec ce cette ces
        il elle je tu nous vous ils sont mais ou où par plus son sa ses mon ma mes ton ta tes quel
        quelle quels quelles comment pourquoi quand bonjour bonsoir salut merci moi toi être fait qu
        j l d rien très bien aussi comme tout peux écris explique entre sous si me te se à s n on c
        même deux leur autre ont autres avant ainsi non donc faire tous temps été y après également
        vie là sans année sera doit notre possible plusieurs cela depuis faut encore contre moins
        première était afin dont cas jour seule combien laquelle lequel chez veux voudrais raconte
        résume ai as es suis t
        """,
    "German": """
        der die das und ist ich nicht ein eine einen einem einer eines zu den dem des mit auf für
        von im in sich es sie wir ihr du wie was wo wer warum auch als an aus bei nach oder aber
        kann kannst wird sind war haben habe hat mir mich dir dich mein meine bitte danke guten
        hallo über zwischen wenn nur noch geht schreibe erkläre können schön tag werden am da man
        uns so vor diese dieser um zum zur sein hier ihre durch wurde bis wieder dann schon mehr
        gibt alle jetzt keine waren ja doch immer jedoch diesen dass etwas alles zwei nun konnte mal
        dort sehr gegen unter seine wirklich viele viel welche welcher welches wann wen gib sag
        fasse erzähle ob
        """,
    "Italian": """
        il lo la gli le i di da in con su per tra fra un uno una è e che non sono come perché mi ti
        si ci vi ho hai ha hanno del della dei delle dello degli al alla nel nella sul quale quali
        qual cosa dove quando chi più anche ma o se questo questa ciao grazie buongiorno vorrei
        scrivi spiegami spiega stai sei mio mia me te a l d all alle allo dal dalla c ed ai solo due
        poi essere dopo ora oltre sempre cui prima nelle nei negli sia molto contro era tre fare
        invece suo già tutto tutti tempo ancora quanto quanti quante anni loro stato stata può posso
        fammi dimmi raccontami riassumi
        """,
    "Portuguese": """
        o a os as um uma de do da dos das em no na nos nas por para com que é e não se mais como mas
        ao à são você eu ele ela nós meu minha seu sua qual quais quem onde quando porque muito bem
        tudo obrigado obrigada olá está isso este esta pelo pela também já foi ser ter fazer escreva
        explique crie oi dia bom sobre entre desde me quero preciso posso tenho faça tem ou anos há
        forma vida ainda às aos ano pode num numa sem menos suas vai tempo vez primeiro primeira só
        outros outro depois essa esse hoje sempre todos todas apenas até melhor mesmo cada todo lhe
        conta quantos quantas resuma diga dê
        """,
    "Dutch": """
        de het een en van ik je is dat die in te niet met op voor aan er om als ook maar bij naar
        dan zijn was heb hebt heeft hij ze wij we jij u mijn jouw wat waar hoe wie waarom welke dit
        deze geen wel nog kan kun wordt goedemorgen hallo dank bedankt leg uit schrijf gaat door
        werd of tot na worden werden soort haar al had zich alleen onder tussen hun eerste hebben
        over meer twee waren alle zij weer eigen jaar zeer hem per nam terug vooral veel nieuwe rond
        zo gaan echter nu samen kunnen zal goed tegen moet hoeveel wanneer wil vertel maak zoek mij
        heel onze
        """,
    "Polish": """
        i w na z do się nie to jest że o jak co po za od przez dla czy ale tak są być ten ta te tym
        tego jego jej mi mnie mój moja jaki jaka jakie kto gdzie kiedy dlaczego proszę dziękuję
        cześć dzień dobry napisz wyjaśnij która który które oraz lub już tylko a ma roku bo będzie
        tej ich też można mają jeśli może mówi niż sobie przy by pod bardzo także tych go których ze
        ona gdy on u jesteśmy je jeszcze więc jako było czasu nam nich były więcej nawet teraz ile
        dużo ktoś coś chcę mogę podaj opowiedz powiedz
        """,
    "Czech": """
        a je se v na to že s z do i jak co pro po ale za od o jsem jsi jsme jste není být byl byla
        který která které ten ta tento kde kdy proč kdo mi mě můj moje máš mám ahoj děkuji prosím
        dobrý den jaký jaká jaké napiš vysvětli už také nebo jen k ve si jako jsou při tak aby bylo
        u proto pokud před může jeho asi až této další či dnes ze velmi bez než byly svůj jejich zde
        mezi nad tedy první byli podle nic ty budou bude více část jde pouze kolik čem chci mohu
        řekni tady ho
        """,
    "Romanian": """
        și de la în un o a cu pe pentru din este că nu ce mai sunt care să se ale al lui ei eu tu el
        ea noi voi dar sau cum unde când cine cât fi am ai are fost prin după bună ziua mulțumesc
        vreau scrie explică faci şi si ca au sa va i s acest cel toate cele aceasta poate le vor
        fiecare tot l cea timp ani ne mare bine trebuie peste face foarte iar atunci acesta doar lor
        chiar orice nici aici mult despre dintre până spre există câți câte câtă unei unui vă îmi mă
        te spune cineva dacă
        """,
    "Turkish": """
        ve bir bu da de için ile ne mi mı çok ben sen o biz siz var yok daha gibi ama nasıl neden
        nerede kim hangi hangisidir nedir olarak olan en kadar sonra her şey merhaba teşekkürler
        lütfen yaz açıkla kısa nasılsın ilgili ya ise göre veya özel zaman yeni iki önce gün sadece
        içinde kendi olduğu iyi tüm bana bunu ancak hem tek üç son büyük ilk kaç kaçtır nerededir
        kimdir misin mısın musun anlat söyle istiyorum nasıldır arasında
        """,
    "Vietnamese": """
        và là của có không một các cho được với trong này đó người tôi bạn những để khi từ đến như
        gì nào sao vì xin chào cảm ơn hãy viết giải thích về bao nhiêu ở thì cũng rất đã sẽ trên hơn
        thành chính năm nhà nhất phải vào nhiều còn việc theo lại nước thời mà sau nên chúng ngày
        nhưng mới cần cách đang tốt
        """,
    "Indonesian": """
        yang dan di ini itu dengan untuk tidak dari dalam akan pada juga saya ke bisa ada apa
        bagaimana siapa kapan kenapa mengapa mana adalah atau kamu anda kami kita mereka karena
        tolong buatkan jelaskan tulis terima kasih halo kabar cara satu sebuah selamat orang maka
        telah dapat oleh tetapi menjadi bahwa lebih sudah kemudian para harus masih pun sebagai aku
        beberapa jika tahun ketika seperti kepada baru secara sehingga lain serta saja sangat
        tentang dua setiap apakah hari banyak mulai hanya sama agar setelah tersebut mau berapa
        ceritakan siapakah buat ingin jadi
        """,
}
LATIN_LETTERS = {
    "Spanish": "ñ¿¡",
    "French": "œêèçûîëàâ",
    "German": "ßäöü",
    "Italian": "èòùìà",
    "Portuguese": "ãõçêâ",
    "Polish": "łąężźćńś",
    "Czech": "řěůťďňčšž",
    "Romanian": "ăâîșțş",
    "Turkish": "ğışöüç",
    "Vietnamese": "đơưạảấầẩậắằẵặẹẻẽếềểễệỉịọỏốồổộớờởợụủứừửữựỳỹ",
}
SPOKEN_BY_ALL = frozenset({"English", "Spanish"})

# Runs of letters that are not Latin, and where in Unicode each script begins.
OTHER_SCRIPTS = re.compile(
    "[\u0370-\u1dff\u1f00-\u1fff\u2e80-\ud7ff\uf900-\ufaff\ufb1d-\ufefc\U00020000-\U0003134f]+"
)
SCRIPT_STARTS = (
    (0x0370, "Greek"),
    (0x0400, "Cyrillic"),
    (0x0530, "Armenian"),
    (0x0590, "Hebrew"),
    (0x0600, "Arabic"),
    (0x0780, "another script"),
    (0x0900, "Devanagari"),
    (0x0980, "another script"),
    (0x0E00, "Thai"),
    (0x0E80, "another script"),
    (0x1100, "Hangul"),
    (0x1200, "another script"),
    (0x1F00, "Greek"),
    (0x2E80, "Han"),
    (0x3040, "Kana"),
    (0x3100, "Han"),
    (0x3130, "Hangul"),
    (0x3190, "Han"),
    (0xAC00, "Hangul"),
    (0xF900, "Han"),
    (0xFB1D, "Hebrew"),
    (0xFB50, "Arabic"),
    (0x20000, "Han"),
)
# Fewer Greek letters in a row are mathematics, in any language.
FEWEST_GREEK = 3
