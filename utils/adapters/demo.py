"""``adapt.py demo``: an invented product catalogue, for trying things with no data at hand.

Hard on purpose: several words for one thing, some of them rare; offers that mention other
things; names that stand under several parents and are told apart by context alone; typos; a
little wrong labelling; few rows for most classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from utils.adapters.pipeline import AdaptOptions, Columns, Provenance, adapt_table, check_target
from utils.common.errors import UserError
from utils.common.paths import Layout

if TYPE_CHECKING:
    import pyarrow as pa

MOST_ROWS = 50_000_000

# One terminal class a line: its path, then words for what is sold there, common ones first.
# Lines that begin with "=" give words that tell a family's context.
CATALOGUE = """
= Home > Kitchen: kitchen, cooking, chef's, culinary, stove
Home > Kitchen > Pans: frying pan, skillet, saucepan, wok, griddle, casserole, stockpot
Home > Kitchen > Knives: chef's knife, paring knife, cleaver, bread knife, santoku, carving blade
Home > Kitchen > Coffee: coffee maker, espresso machine, french press, moka pot, percolator
Home > Kitchen > Storage: food container, lunch box, canister, spice jar, cling film, bread bin
Home > Kitchen > Covers: lid, pot cover, splatter guard, fly screen, cloche
Home > Kitchen > Cleaning: scourer, dish brush, degreaser, descaler, sponge, rinse aid
Home > Kitchen: utensil set, starter kit, gadget assortment, cookware bundle
= Home > Bedroom: bedroom, sleep, night, bedtime, mattress
Home > Bedroom > Bedding: duvet, quilt, pillow, blanket, comforter, bolster
Home > Bedroom > Covers: duvet cover, pillowcase, fitted sheet, bedspread, valance
Home > Bedroom > Lamps: bedside lamp, night light, reading light, table lamp, lantern
Home > Bedroom > Storage: wardrobe, chest of drawers, under-bed box, coat hanger, closet rail
= Home > Garden: garden, patio, lawn, backyard, outdoor
Home > Garden > Tools: spade, rake, secateurs, hoe, trowel, hedge shears, wheelbarrow
Home > Garden > Plants: rose bush, tulip bulbs, fern, tomato seeds, hydrangea, succulent
Home > Garden > Furniture: deck chair, hammock, picnic table, sun lounger, parasol, bench
Home > Garden > Lamps: solar light, path light, torch, string lights, floodlight
Home > Garden > Covers: tarpaulin, grill cover, frost fleece, pond net, greenhouse film
Home > Garden: gardening gift set, seasonal assortment, starter kit
Home > Office: stapler, ring binder, desk organiser, whiteboard, paper shredder, hole punch
= Electronics > Phones: phone, mobile, smartphone, cell, handset
Electronics > Phones > Smartphones: smartphone, android phone, handset, flip phone, phablet
Electronics > Phones > Covers: phone case, bumper, screen protector, flip wallet, silicone sleeve
Electronics > Phones > Chargers: charging cable, wall charger, power bank, wireless pad, car adapter
Electronics > Phones > Spare Parts: replacement display, battery pack, sim tray, camera module
= Electronics > Computers: laptop, computer, notebook, desktop, workstation
Electronics > Computers > Laptops: laptop, ultrabook, notebook, chromebook, convertible
Electronics > Computers > Input: keyboard, mouse, trackpad, graphics tablet, stylus, webcam
Electronics > Computers > Storage: hard drive, ssd, usb stick, memory card, nas enclosure
Electronics > Computers > Covers: laptop sleeve, dust cover, keyboard skin, privacy filter
Electronics > Computers > Spare Parts: cooling fan, ram module, hinge kit, power supply, heat sink
Electronics > Computers: office bundle, bargain box, refurbished lot
= Electronics > Audio: audio, music, sound, hi-fi, listening
Electronics > Audio > Headphones: headphones, earbuds, headset, in-ear monitors, earphones
Electronics > Audio > Speakers: bluetooth speaker, soundbar, subwoofer, bookshelf speaker, boombox
Electronics > Audio > Instruments: guitar, ukulele, synthesizer, drum pad, violin, recorder
Electronics > Audio > Spare Parts: ear cushions, tuning peg, replacement tweeter, guitar strings
= Clothing > Women: women's, ladies', her, feminine, maternity
Clothing > Women > Dresses: dress, gown, sundress, maxi, pinafore, sheath
Clothing > Women > Tops: blouse, tunic, camisole, cardigan, tank top, jumper
Clothing > Women > Shoes: heels, sandals, ballet flats, ankle boots, mules, pumps
Clothing > Women > Bags: handbag, clutch, tote, shoulder bag, satchel
Clothing > Women > Sports: leggings, sports bra, yoga pants, running skirt
= Clothing > Men: men's, gents', his, gentleman's, masculine
Clothing > Men > Shirts: shirt, polo, henley, flannel, oxford, tee
Clothing > Men > Suits: suit, blazer, tuxedo, waistcoat, dinner jacket
Clothing > Men > Shoes: brogues, loafers, sneakers, derbies, work boots, moccasins
Clothing > Men > Bags: briefcase, messenger bag, holdall, weekender, backpack
Clothing > Men > Sports: track pants, jersey, running shorts, base layer
= Clothing > Kids: kids', toddler, baby, children's, little one's
Clothing > Kids > Tops: t-shirt, hoodie, sweater, romper, bodysuit, pullover
Clothing > Kids > Shoes: wellies, trainers, booties, velcro sneakers, slippers
Clothing > Kids > Costumes: dragon costume, pirate outfit, fairy wings, cape, astronaut suit
Clothing > Kids: hand-me-down bundle, surprise bag, mixed lot
= Leisure > Sports: sport, training, athletic, fitness, workout
Leisure > Sports > Cycling: bicycle, road bike, helmet, pannier, inner tube, saddle
Leisure > Sports > Camping: tent, sleeping bag, camp stove, trekking poles, bivouac, hammock
Leisure > Sports > Fitness: dumbbell, kettlebell, yoga mat, resistance band, rowing machine
Leisure > Sports > Racket: tennis racket, shuttlecock, squash ball, padel bat, grip tape
Leisure > Sports > Bags: gym bag, duffel, hydration pack, racket holder, dry sack
= Leisure > Toys: toy, play, children's, game, playtime
Leisure > Toys > Building: building blocks, construction bricks, model kit, marble run, gears set
Leisure > Toys > Dolls: doll, action figure, dolls' house, teddy bear, plush rabbit
Leisure > Toys > Games: board game, card game, dice set, jigsaw puzzle, chess set, domino
Leisure > Toys > Outdoor: frisbee, kite, sandpit, trampoline, water pistol, scooter
Leisure > Toys > Instruments: xylophone, toy piano, tambourine, maracas, recorder
Leisure > Books: cookbook, crime novel, atlas, picture book, biography, poetry collection
= Pets > Dogs: dog, puppy, canine, hound, pup
Pets > Dogs > Food: kibble, chew stick, wet food, biscuits, bone broth
Pets > Dogs > Toys: squeaky ball, rope tug, chew bone, fetch stick, plush duck
Pets > Dogs > Beds: basket, orthopedic cushion, kennel, crate mat, blanket
Pets > Dogs > Grooming: shampoo, slicker brush, nail clipper, comb, paw balm
= Pets > Cats: cat, kitten, feline, tomcat, kitty
Pets > Cats > Food: wet food, kibble, tuna pouch, treat paste, milk
Pets > Cats > Toys: feather wand, laser pointer, catnip mouse, crinkle tunnel, jingle ball
Pets > Cats > Beds: basket, window perch, cave, heated pad, blanket
Pets > Cats > Grooming: shampoo, comb, deshedding brush, nail clipper, wipes
Pets > Fish: aquarium, fish flakes, water filter, gravel, air pump, plastic castle
"""
BRANDS = """Norvik Alder&Co Lumo Kestrel Bramble Zenta Ostara Fjord Pico Tavo Merrow Quill Juno
Hatch Solis Vantor Willow Echo Brix Calla""".split()  # noqa: SIM905
QUALITIES = """black white blue red green grey large small compact premium classic modern vintage
lightweight sturdy soft foldable waterproof eco handmade organic deluxe basic stylish portable
durable elegant bright quiet refillable""".split()  # noqa: SIM905
ENDINGS = [
    "", "", "", "", "pack of 2", "set of 4", "with gift box", "new season", "size M", "500 g",
    "limited edition", "clearance", "2 year guarantee", "for everyday use", "30 cm", "bestseller",
]  # fmt: skip
MENTIONS = ["goes with", "not a", "store next to your", "better than any", "for use with", "free"]

TYPO_SHARE, OTHER_SHARE, CONTEXT_SHARE, WRONG_SHARE, VAGUE_SHARE = 0.06, 0.3, 0.6, 0.02, 0.05
_VARIANTS = 4


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """The parsed catalogue.

    Parameters
    ----------
    paths
        Terminal classes.
    things, contexts
        Words per terminal class; contexts are those of its family, empty without one.
    siblings
        Per terminal class another one of the same family, itself without one.
    """

    paths: list[tuple[str, ...]]
    things: list[list[str]]
    contexts: list[list[str]]
    siblings: NDArray[np.int64]


def read_catalogue(text: str = CATALOGUE) -> Catalogue:
    """Parse the catalogue's lines."""
    paths, things, contexts = [], [], []
    words_of: dict[tuple[str, ...], list[str]] = {}
    for line in filter(None, text.splitlines()):
        left, right = line.removeprefix("= ").split(": ")
        path, words = tuple(left.split(" > ")), right.split(", ")
        if line.startswith("="):
            words_of[path] = words
            continue
        paths.append(path)
        things.append(words)
        contexts.append(words_of.get(path[:2], []))
    families = [path[:2] for path in paths]
    siblings = [
        next((j for j in (*range(i + 1, len(paths)), *range(i)) if families[j] == families[i]), i)
        for i in range(len(paths))
    ]
    return Catalogue(
        paths=paths, things=things, contexts=contexts, siblings=np.array(siblings, dtype=np.int64)
    )


class Words:
    """A vocabulary with misspelt variants, and lists of words to draw from."""

    def __init__(self, lists: list[list[str]], generator: np.random.Generator) -> None:
        self._words = sorted({word for words in lists for word in words})
        place = {word: i for i, word in enumerate(self._words)}
        width = max(map(len, lists))
        self._lists = np.array(
            [[place[words[i]] if i < len(words) else 0 for i in range(width)] for words in lists]
        )
        # The first words of a list are common, the last ones rare.
        weights = np.array(
            [[1 / (i + 1.5) if i < len(words) else 0.0 for i in range(width)] for words in lists]
        )
        total = weights.sum(axis=1, keepdims=True)
        self._bounds = np.cumsum(weights / np.where(total, total, 1), axis=1)
        self._spelt = [
            spelling
            for word in self._words
            for spelling in (word, *(_misspelt(word, generator) for _ in range(_VARIANTS)))
        ]

    def draw(self, which: NDArray[np.int64], generator: np.random.Generator) -> pa.Array:
        """One word per row, from the list given by `which`; now and then misspelt."""
        import pyarrow as pa

        rows = len(which)
        ranks = (generator.random((rows, 1)) > self._bounds[which]).sum(axis=1)
        words = self._lists[which, np.minimum(ranks, self._lists.shape[1] - 1)]
        wrong = generator.random(rows) < TYPO_SHARE
        variant = np.where(wrong, generator.integers(1, _VARIANTS + 1, rows), 0)
        return pa.array(self._spelt).take(pa.array(words * (_VARIANTS + 1) + variant))


def _misspelt(word: str, generator: np.random.Generator) -> str:
    """Drop, double or swap one letter."""
    if len(word) < 4:
        return word
    at = int(generator.integers(1, len(word) - 2))
    kind = int(generator.integers(3))
    middle = ("", word[at] * 2, word[at + 1] + word[at])[kind]
    return word[:at] + middle + word[at + (2 if kind == 2 else 1) :]


def generate(rows: int, seed: int) -> pa.Table:
    """Invent a catalogue.

    Returns
    -------
    pa.Table
        Columns `text`, `department`, `family` and `kind`; the last one or two may be null.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    generator = np.random.default_rng(seed)
    catalogue = read_catalogue()
    count = len(catalogue.paths)
    weights = 1 / (generator.permutation(count) + 4.0)
    # Every class once, so that --seed changes the rows and not the tree.
    extra = generator.choice(count, max(rows - count, 0), p=weights / weights.sum())
    kinds = generator.permutation(np.concatenate([np.arange(count), extra])[:rows])
    texts = _texts(catalogue, kinds, generator)
    wrong = generator.random(rows) < WRONG_SHARE
    labels = np.where(wrong, catalogue.siblings[kinds], kinds)
    columns = {}
    for level, name in enumerate(("department", "family", "kind")):
        names = [path[level] if level < len(path) else None for path in catalogue.paths]
        columns[name] = pa.array(names, pa.string()).take(pa.array(labels))
    return pa.table({"text": pc.cast(texts, pa.large_string()), **columns})


def _texts(
    catalogue: Catalogue, kinds: NDArray[np.int64], generator: np.random.Generator
) -> pa.Array:
    """Put offers together from words, column by column."""
    import pyarrow as pa
    import pyarrow.compute as pc

    rows = len(kinds)
    things = Words(catalogue.things, generator)
    contexts = Words([words or [""] for words in catalogue.contexts], generator)
    others = generator.integers(len(catalogue.paths), size=rows)
    vague = pa.array(generator.random(rows) < VAGUE_SHARE)
    context = contexts.draw(kinds, generator)
    thing = pc.if_else(vague, pa.scalar("article"), things.draw(kinds, generator))
    hidden = pa.array(generator.random(rows) >= CONTEXT_SHARE)
    front = pa.array(generator.random(rows) < 0.7)
    context = pc.if_else(pc.and_not(hidden, vague), pa.scalar(""), context)
    mention = pc.binary_join_element_wise(
        _any(MENTIONS, rows, generator), things.draw(others, generator), " "
    )
    mention = pc.if_else(pa.array(generator.random(rows) < OTHER_SHARE), mention, pa.scalar(""))
    before = pc.if_else(front, context, pa.scalar(""))
    after = pc.if_else(front, pa.scalar(""), context)
    quality, second = (_any(["", *QUALITIES], rows, generator) for _ in range(2))
    brand, ending = _any(BRANDS, rows, generator), _any(ENDINGS, rows, generator)
    text = pc.binary_join_element_wise(
        brand, quality, second, before, thing, after, mention, ending, " "
    )
    return pc.utf8_trim_whitespace(pc.replace_substring_regex(text, " +", " "))


def _any(words: list[str], rows: int, generator: np.random.Generator) -> pa.Array:
    import pyarrow as pa

    return pa.array(words).take(pa.array(generator.integers(len(words), size=rows)))


def adapt_demo(rows: int, name: str, options: AdaptOptions, layout: Layout) -> dict[str, Any]:
    """Make a dataset of invented products.

    Returns
    -------
    dict
        What report.json holds.
    """
    least = 2 * len(read_catalogue().paths)
    if rows < least:
        raise UserError(f"--rows is {rows}: the catalogue needs at least {least}.")
    if rows > MOST_ROWS:
        raise UserError(f"--rows is {rows}: it must be at most {MOST_ROWS:,}.")
    recipe = {
        "command": "demo", "rows": rows, "seed": options.seed,
        "train": options.ratios.train, "val": options.ratios.val,
    }  # fmt: skip
    check_target(layout, name, recipe, options)
    columns = Columns(text=("text",), classes=("department", "family", "kind"))
    table = generate(rows, options.seed)
    source = Provenance(recipe=recipe)
    return adapt_table(table, columns, name=name, options=options, source=source, layout=layout)
