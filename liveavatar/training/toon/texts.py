"""Things to say, of our own making: small grammars over word lists in eleven languages, numbers, and nonsense."""

from __future__ import annotations

import numpy as np

# subject phrases | verbs | object phrases | when and where
_WORDS: dict[str, tuple[str, str, str, str]] = {
    "en": (
        "my sister|the old teacher|our neighbour|a young painter|the captain|nobody|every child|the small brown dog|"
        "my best friend|the woman by the window|a famous baker|the mayor",
        "bought|found|remembers|always forgets|would love|has painted|is looking for|brings|dreams about|opened|"
        "told me about|makes",
        "a bowl of warm soup|the blue boat|many red apples|a very long letter|the broken piano|five paper lamps|"
        "the way home|a book about bees|some fresh bread|the garden behind the house|two umbrellas|a purple map",
        "in the morning|before breakfast|on the bridge|last summer|near the river|after the show|without a word|"
        "every Monday|at the market|for a while|in the middle of the night|again and again",
    ),
    "de": (
        "meine Schwester|der alte Lehrer|unser Nachbar|eine junge Malerin|der Kapitän|niemand|jedes Kind|"
        "der kleine Hund|mein bester Freund|die Frau am Fenster",
        "kauft|findet|vergisst|malt|sucht|bringt|öffnet|liebt|braucht|baut",
        "eine warme Suppe|das blaue Boot|viele rote Äpfel|einen langen Brief|das kaputte Klavier|fünf Lampen|"
        "den Weg nach Hause|ein Buch über Bienen|frisches Brot|zwei Regenschirme",
        "am Morgen|vor dem Frühstück|auf der Brücke|im Sommer|am Fluss|ohne ein Wort|jeden Montag|auf dem Markt|"
        "mitten in der Nacht|schon wieder",
    ),
    "fr": (
        "ma soeur|le vieux professeur|notre voisin|une jeune artiste|le capitaine|personne ne|chaque enfant|"
        "le petit chien|mon meilleur ami|la femme à la fenêtre",
        "achète|trouve|oublie|dessine|cherche|apporte|ouvre|aime|demande|prépare",
        "une soupe chaude|le bateau bleu|des pommes rouges|une longue lettre|le piano cassé|cinq lampes|"
        "le chemin de la maison|un livre sur les abeilles|du pain frais|deux parapluies",
        "le matin|avant le déjeuner|sur le pont|en été|près de la rivière|sans un mot|chaque lundi|au marché|"
        "au milieu de la nuit|encore une fois",
    ),
    "es": (
        "mi hermana|el viejo maestro|nuestro vecino|una joven pintora|el capitán|nadie|cada niño|el perro pequeño|"
        "mi mejor amigo|la mujer de la ventana",
        "compra|encuentra|olvida|pinta|busca|trae|abre|ama|necesita|prepara",
        "una sopa caliente|el barco azul|muchas manzanas rojas|una carta larga|el piano roto|cinco lámparas|"
        "el camino a casa|un libro sobre abejas|pan fresco|dos paraguas",
        "por la mañana|antes del desayuno|en el puente|en verano|cerca del río|sin decir nada|cada lunes|"
        "en el mercado|a medianoche|otra vez",
    ),
    "it": (
        "mia sorella|il vecchio maestro|il nostro vicino|una giovane pittrice|il capitano|nessuno|ogni bambino|"
        "il piccolo cane|il mio migliore amico|la donna alla finestra",
        "compra|trova|dimentica|dipinge|cerca|porta|apre|ama|chiede|prepara",
        "una zuppa calda|la barca blu|molte mele rosse|una lunga lettera|il pianoforte rotto|cinque lampade|"
        "la strada di casa|un libro sulle api|pane fresco|due ombrelli",
        "la mattina|prima di colazione|sul ponte|in estate|vicino al fiume|senza una parola|ogni lunedì|al mercato|"
        "nel mezzo della notte|ancora una volta",
    ),
    "nl": (
        "mijn zus|de oude leraar|onze buurman|een jonge schilder|de kapitein|niemand|elk kind|de kleine hond|"
        "mijn beste vriend|de vrouw bij het raam",
        "koopt|vindt|vergeet|schildert|zoekt|brengt|opent|bewaart|vraagt|maakt",
        "een warme soep|de blauwe boot|veel rode appels|een lange brief|de kapotte piano|vijf lampen|"
        "de weg naar huis|een boek over bijen|vers brood|twee paraplu's",
        "in de ochtend|voor het ontbijt|op de brug|in de zomer|bij de rivier|zonder een woord|elke maandag|"
        "op de markt|midden in de nacht|alweer",
    ),
    "pl": (
        "moja siostra|stary nauczyciel|nasz sąsiad|młoda malarka|kapitan|każde dziecko|mały pies|mój przyjaciel|"
        "kobieta przy oknie|piekarz",
        "kupuje|znajduje|pamięta|maluje|ogląda|przynosi|otwiera|lubi|sprzedaje|robi",
        "ciepłą zupę|niebieską łódkę|czerwone jabłka|długi list|stare pianino|pięć lamp|drogę do domu|"
        "książkę o pszczołach|świeży chleb|dwa parasole",
        "rano|przed śniadaniem|na moście|latem|nad rzeką|bez słowa|w każdy poniedziałek|na rynku|w środku nocy|znowu",
    ),
    "pt": (
        "minha irmã|o velho professor|nosso vizinho|uma jovem pintora|o capitão|ninguém|cada criança|"
        "o pequeno cachorro|meu melhor amigo|a mulher na janela",
        "compra|encontra|esquece|pinta|procura|traz|abre|ama|pede|prepara",
        "uma sopa quente|o barco azul|muitas maçãs vermelhas|uma carta longa|o piano quebrado|cinco lâmpadas|"
        "o caminho de casa|um livro sobre abelhas|pão fresco|dois guarda-chuvas",
        "de manhã|antes do café|na ponte|no verão|perto do rio|sem uma palavra|toda segunda-feira|no mercado|"
        "no meio da noite|outra vez",
    ),
    "sv": (
        "min syster|den gamla läraren|vår granne|en ung målare|kaptenen|ingen|varje barn|den lilla hunden|"
        "min bästa vän|kvinnan vid fönstret",
        "köper|hittar|glömmer|målar|letar efter|hämtar|öppnar|älskar|behöver|lagar",
        "en varm soppa|den blå båten|många röda äpplen|ett långt brev|det trasiga pianot|fem lampor|vägen hem|"
        "en bok om bin|färskt bröd|två paraplyer",
        "på morgonen|före frukosten|på bron|i somras|vid floden|utan ett ord|varje måndag|på torget|mitt i natten|igen",
    ),
    "fi": (
        "sisareni|vanha opettaja|naapurimme|nuori taidemaalari|kapteeni|jokainen lapsi|pieni koira|paras ystäväni|"
        "nainen ikkunan luona|leipuri",
        "ostaa|löytää|muistaa|maalaa|etsii|tuo|avaa|rakastaa|tarvitsee|tekee",
        "lämmintä keittoa|sinisen veneen|monta punaista omenaa|pitkän kirjeen|vanhan pianon|viisi lamppua|tien kotiin|"
        "kirjan mehiläisistä|tuoretta leipää|kaksi sateenvarjoa",
        "aamulla|ennen aamiaista|sillalla|viime kesänä|joen lähellä|sanomatta mitään|joka maanantai|torilla|"
        "keskellä yötä|taas",
    ),
    "cs": (
        "moje sestra|starý učitel|náš soused|mladá malířka|kapitán|každé dítě|malý pes|můj přítel|žena u okna|pekař",
        "kupuje|najde|pamatuje si|maluje|hledá|přinese|otevře|miluje|potřebuje|prodává",
        "teplou polévku|modrou loďku|červená jablka|dlouhý dopis|rozbité piano|pět lamp|cestu domů|knihu o včelách|"
        "čerstvý chléb|dva deštníky",
        "ráno|před snídaní|na mostě|v létě|u řeky|beze slova|každé pondělí|na trhu|uprostřed noci|zase",
    ),
}
LANGUAGES = tuple(_WORDS)
_ONSETS = (
    "",
    "b",
    "p",
    "m",
    "f",
    "v",
    "t",
    "d",
    "s",
    "z",
    "l",
    "r",
    "n",
    "k",
    "g",
    "w",
    "h",
    "ch",
    "sh",
    "pl",
    "br",
    "st",
)
_NUCLEI = ("a", "e", "i", "o", "u", "ah", "ee", "oo", "ai", "ou")
_CODAS = ("", "", "", "m", "n", "p", "s", "t", "l", "f")


def sentence(rng: np.random.Generator, language: str = "en") -> str:
    """Something to say: mostly a plain sentence, sometimes a list of numbers or nonsense syllables.

    Raises:
        ValueError: for a language without words here.
    """
    if language not in _WORDS:
        raise ValueError(f"There are no words for language={language!r}. Choose among: {', '.join(LANGUAGES)}.")
    kind = rng.random()
    if kind < 0.08:
        return ", ".join(str(int(number)) for number in rng.integers(0, 1000, int(rng.integers(2, 6)))) + "."
    if kind < 0.25:
        return " ".join(_nonsense(rng) for _ in range(int(rng.integers(4, 9)))) + "."
    subject, verb, thing, place = (str(rng.choice(words.split("|"))) for words in _WORDS[language])
    order = [subject, verb, thing, place] if rng.random() < 0.6 else [subject, verb, thing]
    if rng.random() < 0.2:
        order.append(str(rng.choice(_WORDS[language][3].split("|"))))
    text = " ".join(order)
    return text[0].upper() + text[1:] + str(rng.choice([".", ".", ".", "!", "?"]))


def _nonsense(rng: np.random.Generator) -> str:
    syllables = int(rng.integers(1, 4))
    return "".join(str(rng.choice(_ONSETS) + rng.choice(_NUCLEI)) for _ in range(syllables)) + str(rng.choice(_CODAS))
