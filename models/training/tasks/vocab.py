"""Random words, names, numbers and sentences for the tasks: from lists, and made up.

A word's hash decides whether it is in the training or in the held-out split, so no held-out value occurs in training.
"""

from collections.abc import Callable
from random import Random
from string import ascii_lowercase, ascii_uppercase, digits
from zlib import crc32

CITIES = """
Paris London Berlin Madrid Rome Vienna Prague Warsaw Lisbon Dublin Athens Oslo Stockholm Helsinki Copenhagen
Brussels Amsterdam Zurich Geneva Milan Naples Turin Florence Venice Munich Hamburg Cologne Frankfurt Lyon
Marseille Nice Toulouse Bordeaux Barcelona Seville Valencia Porto Krakow Budapest Bucharest Sofia Belgrade
Zagreb Kyiv Tallinn Riga Vilnius Tokyo Osaka Kyoto Nagoya Sapporo Seoul Busan Beijing Shanghai Shenzhen
Guangzhou Chengdu Hangzhou Taipei Hanoi Bangkok Manila Jakarta Singapore Delhi Mumbai Chennai Kolkata Lahore
Karachi Dhaka Colombo Kabul Tehran Baghdad Dubai Doha Riyadh Cairo Tunis Algiers Lagos Accra Dakar Nairobi
Kampala Lusaka Harare Durban Boston Chicago Denver Seattle Portland Austin Dallas Houston Phoenix Atlanta Miami
Detroit Toronto Montreal Ottawa Vancouver Calgary Havana Lima Quito Bogota Caracas Santiago Montevideo Brasilia
Recife Sydney Melbourne Perth Brisbane Auckland Wellington Hobart Darwin
""".split()

TWO_WORD_CITIES = """New York,Los Angeles,San Francisco,Hong Kong,Cape Town,Buenos Aires,Mexico City,Tel Aviv,Rio Verde,
Saint Paul,El Paso,Las Vegas,Salt Lake,Port Louis,Addis Ababa,Kuala Lumpur,New Delhi,San Diego""".replace(
    "\n", ""
).split(",")

NAMES = """
Anna Ben Clara David Emma Felix Grace Henry Iris Jack Kate Liam Maria Noah Olga Peter Rosa Simon Tina Victor
Wendy Xavier Yara Zoe Adam Bella Carl Diana Eric Fiona George Hannah Ivan Julia Kevin Laura Martin Nina Oscar
Paula Robert Sarah Thomas Ursula Vera William Alice Boris Chloe Daniel Elena Frank Gloria Hugo Ingrid James
Karin Lucas Monica Nathan Olivia Pablo Rachel Samuel Teresa Walter Yuki Hiro Mei Li Chen Wang Ravi Priya Arjun
Fatima Omar Layla Kofi Amara Ngozi
""".split()

NOUNS = """
apple bread chair table river stone cloud garden window bottle letter paper pencil mirror candle basket button
ladder hammer engine rocket planet forest desert island bridge castle market school doctor teacher farmer sailor
driver kitten puppy horse rabbit tiger eagle salmon spider lemon banana cherry pepper butter cheese
coffee sugar honey music summer winter spring autumn morning evening holiday journey
village mountain ocean valley camera guitar violin piano trumpet jacket shirt glove scarf blanket pillow carpet
curtain kitchen bedroom office factory library museum theatre station airport harbour ticket wallet pocket
needle thread cotton silver copper marble thunder lightning rainbow shadow silence laughter
secret promise dream memory feather blossom
""".split()

ADJECTIVES = """
small large old new quiet loud bright dark warm cold soft hard quick slow happy sad brave clever gentle proud
round flat heavy light sweet bitter fresh dry wet clean empty full narrow wide deep tall short strange plain
fine
""".split()

VERBS = """
opens closes carries finds keeps brings paints builds breaks mends holds drops lifts moves sells buys makes sees
hears follows leaves meets helps watches counts cleans fills turns starts stops
""".split()

ONSETS = "b c d f g h j k l m n p r s t v w z br ch cl dr fl gr kr pl pr sh sk sl st th tr".split()
VOWELS = "a e i o u a e i o ai ea ee io ou".split()
ENDINGS = " n r s t l m k d x th nd rt sh ck".split(" ")

COMMON = """
again air always animal back bad because best big bird body boy brother brown bus busy came car child class could
country did different dog done door down drink early eat enough even ever every example eye face family fast father
feel few fire fish five floor flower food foot four fox friend fun gave girl group grow had hand happen head her here
him his hold home hope hot hour house hundred idea if jumps just keep kind king know land last laugh lazy learn left
less little live lost love lunch man milk moment moon most mother must near never night north often once only other
our own part place play point quiz ran reach ready right road round saw school sea seem seven she ship side since
sister six sleep some soon sound south still street strong study sun sure swim talk team ten them thing three told
took top town tree try until voice wait walk war watch water way we well went were while wind woman wonder world would
yes young zero zoo
""".split()
"""Everyday words that no task's fixed wording uses. The tokenizer has no entries for them."""

SMALL = "the a and of in with to is".split()
"""Words that occur both in the tasks' fixed wording and in copied text. Each has two tokens, with a blank before it and
without, and both must occur often enough to be learnt."""

SYMBOLS = """& % $ # @ * + = ~ / - : ; , _ ^ | ( ) [ ] é ü ñ ß ø à ç 日本 ✓ € £ ° 🙂 «»""".split()


SENTENCE_POOL = 30
"""Common words that one sentence is drawn from: few, so that words repeat within it in both splits."""
REPEATING_TRAIN_SHARE = 0.35
"""Sentences with repeated words in training, more than in evaluation: they are the hardest to copy."""
SYLLABLE_SHARE = 0.7
"""Made-up words that are made of syllables; the others are random letters."""
CONFUSABLE_POOL = 3
"""Entries of each pool (digits, letters, syllable parts) that a confusable task uses."""
MAX_NUMBER_DRAWS = 60
"""Draws after which a number of a confusable task may have any digits."""


def is_held_out(text: str) -> bool:
    """True for a fifth of all texts, by hash, so that it is the same on every machine."""
    return crc32(text.encode()) % 5 == 0


class Vocab:
    """Draws words, names and numbers of one split, with the given random generator only.

    A confusable one uses few digits, letters and syllables, so that several values of a task begin or end alike.
    """

    def __init__(self, rng: Random, *, held_out: bool, is_confusable: bool = False) -> None:
        self.rng, self.held_out = rng, held_out
        pools = [list(digits), list(ascii_lowercase), list(ascii_uppercase), ONSETS, VOWELS, ENDINGS]
        if is_confusable:
            pools = [rng.sample(pool, CONFUSABLE_POOL) for pool in pools]
        self.digits, self.letters, self.capitals, self.onsets, self.vowels, self.endings = pools

    def pick(self, pool: list[str]) -> str:
        while True:
            word = self.rng.choice(pool)
            if is_held_out(word) == self.held_out:
                return word

    def made_up(self) -> str:
        """A word of one to three syllables, or of random letters."""
        while True:
            word = self._syllables() if self.rng.random() < SYLLABLE_SHARE else self._letters()
            if is_held_out(word) == self.held_out:
                return word

    def _syllables(self) -> str:
        rng = self.rng
        count = rng.choice((1, 1, 2, 2, 2, 2, 3))
        syllables = "".join(rng.choice(self.onsets) + rng.choice(self.vowels) for _ in range(count))
        return syllables + rng.choice(self.endings)

    def _letters(self) -> str:
        """Random letters, so that tokens occur which no syllable contains."""
        return "".join(self.rng.choice(self.letters) for _ in range(self.rng.randint(2, 7)))

    def city(self) -> str:
        draw = self.rng.random()
        if draw < 0.5:
            return self.pick(CITIES)
        if draw < 0.6:
            return self.pick(TWO_WORD_CITIES)
        made_up = self.made_up().capitalize()
        return made_up if draw < 0.9 else f"{made_up} {self.made_up().capitalize()}"

    def name(self) -> str:
        return self.pick(NAMES) if self.rng.random() < 0.5 else self.made_up().capitalize()

    def noun(self) -> str:
        return self.pick(NOUNS) if self.rng.random() < 0.5 else self.made_up()

    def code(self) -> str:
        """Letters and digits, like an order number or a product code."""
        letters = "".join(self.rng.choice(self.capitals) for _ in range(self.rng.randint(1, 3)))
        number = "".join(self.rng.choice(self.digits) for _ in range(self.rng.randint(1, 4)))
        return letters + self.rng.choice(("", "-")) + number

    def number(self, low: int, high: int) -> int:
        """A number from `low` to `high`, of this split if the range has at least 20."""
        while True:
            value = self.any_number(low, high)
            if high - low < 20 or is_held_out(str(value)) == self.held_out:
                return value

    def any_number(self, low: int, high: int) -> int:
        """A number from `low` to `high`, of either split."""
        (value,) = self.draw_confusable(lambda: (self.rng.randint(low, high),))
        return value

    def draw_confusable(self, draw: Callable[[], tuple[int, ...]]) -> tuple[int, ...]:
        """The first draw that `has_allowed_digits`, or the last of `MAX_NUMBER_DRAWS`."""
        for _ in range(MAX_NUMBER_DRAWS):
            numbers = draw()
            if self.has_allowed_digits(*numbers):
                break
        return numbers

    def has_allowed_digits(self, *numbers: int) -> bool:
        """Whether all digits are in this instance's pool."""
        return set("".join(map(str, numbers))) <= set(self.digits)

    def sentence(self, low: int = 2, high: int = 8) -> str:
        """`low` to `high` draws of words, names, numbers and symbols without repetition. It makes no sense."""
        rng = self.rng
        makers = (self.noun, self.noun, self.made_up, self.name, self.city)
        words: dict[str, None] = {}
        for _ in range(rng.randint(low, high)):
            draw = rng.random()
            if draw < 0.06:
                words[rng.choice(SMALL)] = None
            elif draw < 0.15:
                words[rng.choice(ADJECTIVES + VERBS)] = None
            elif draw < 0.35:
                words[self.pick(COMMON)] = None
            elif draw < 0.40:
                words[str(rng.randint(0, 999))] = None
            elif draw < 0.42:
                words[self.code()] = None
            elif draw < 0.43:
                words[rng.choice(SYMBOLS)] = None
            else:
                words[rng.choice(makers)()] = None
        return " ".join(words)

    def plain_sentence(self) -> str:
        """A simple English sentence, or everyday words with repetitions."""
        rng = self.rng
        noun, other = self.noun(), self.noun()
        pool = [word for word in COMMON if is_held_out(word) == self.held_out]
        candidates = rng.sample(pool, min(len(pool), SENTENCE_POOL))
        repeating = " ".join(rng.choice(candidates) for _ in range(rng.randint(3, 9))).capitalize() + rng.choice(".!?")
        if not self.held_out and rng.random() < REPEATING_TRAIN_SHARE:
            return repeating
        return rng.choice(
            (
                repeating,
                f"The {rng.choice(ADJECTIVES)} {noun} {rng.choice(VERBS)} the {other}.",
                f"{self.name()} {rng.choice(VERBS)} a {rng.choice(ADJECTIVES)} {noun} in {self.city()}.",
                f"In {self.city()} the {noun} is {rng.choice(ADJECTIVES)}, and {self.name()} {rng.choice(VERBS)} it.",
                f"{self.name()} and {self.name()} have {rng.randint(2, 99)} {noun}s.",
            )
        )


def slot_words() -> set[str]:
    """Every listed word that tasks use as a value, in lower case; names of several words give each word."""
    pools = (CITIES, TWO_WORD_CITIES, NAMES, NOUNS, [f"{noun}s" for noun in NOUNS], ADJECTIVES, VERBS, COMMON)
    return {part.lower() for pool in pools for word in pool for part in word.split()}


def spelling_corpus(rng: Random) -> list[str]:
    """Words of the training split, from which the tokenizer learns its merges.

    With held-out words, some merges would occur in no training sample.
    """
    vocab = Vocab(rng, held_out=False)
    pools = [word for word in CITIES + NAMES + NOUNS + ADJECTIVES + VERBS + COMMON if not is_held_out(word)]
    return pools * 4 + [vocab.made_up() for _ in range(1500)]
