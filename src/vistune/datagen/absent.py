"""What is not in a picture: names whose absence may be claimed, and which names could be said of one another.

A picture of an eagle shows a bird, one of a tree its leaves, and who sees a wolf may call it a dog. A question for what is not there asks
only for names that none of this can be said of.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Sequence

from vistune.scenes import sprite_bank
from vistune.scenes.bank import PAINTED_CATEGORIES, Thing

# What could be part of another thing, or a word for many kinds of them. Its absence is never claimed.
_PARTS_AND_KINDS_LIST = """
leaf, maple leaf, flower, tree, bare tree, potted plant, seedling, herb, wreath, eye, eyes, ear, nose, foot, leg, hand, tongue, tooth,
lips, fist, bone, robot arm, brain, wing, feather, wheel, door, window, bricks, hat, shoe, glasses, gem, beads, ring, bug, bird, fish,
box, bottle, glass, mug, wave, drop, water drops, star, fire, sparkles, bubbles, splatter, explosion, gear, plug, bolt, hook, pick,
spade, hole, rock, house, school, tower, road, city, chain link, chains, disc, record, tag, page, note, placard, knot, ribbon, ship,
car, truck, train, phone, telephone, computer, monitor, clock, watch, bell, horn, salad, soup, meat, bread, cake, cutlery, dinner plate,
food can, paper bag, luggage, book, books, poop, iron, slide, light bulb, scales, coral, nest, shield
"""
_PARTS_AND_KINDS = frozenset(" ".join(_PARTS_AND_KINDS_LIST.split()).split(", "))
_PEOPLE = frozenset({"person", "creature", "face", "body part", "clothing"})
# Two names of one group may be said of the same picture.
_LOOK_ALIKE_LIST = """
ferry, motorboat, sailboat, canoe, life buoy
taxi, police car, racing car, van, ambulance, bus, tram, cable car, steam train, toy train, railway track
pickup truck, trailer truck, fire truck, cement mixer, tractor, wagon
motorcycle, scooter, kick scooter, bicycle, wheelchair, rickshaw
laptop, keyboard, television, modem, router, printer, fax machine, game console, cash register, calculator
speaker, loudspeaker, megaphone, radio, microphone, siren, gramophone
guitar, electric guitar, banjo, violin, cello, harp, dulcimer
french horn, trumpet, trombone, saxophone
flute, oboe
dog, poodle, wolf, fox
cat, tiger, lion, leopard
mouse, rat, hamster, chipmunk, squirrel, hedgehog
ox, bison, buffalo, cow, ram, goat, sheep, moose, deer, camel, llama
monkey, gorilla, orangutan, sloth
pig, boar
bear, polar bear, panda, koala
horse, donkey, zebra, unicorn
lizard, crocodile, dinosaur, pterosaur, turtle, dragon
badger, skunk, raccoon, otter
ant, bee, beetle, cockroach, cricket, fly, grasshopper, ladybug, mosquito, wasp, butterfly, dragonfly, praying mantis
worm, caterpillar, snake, snail
spider, spider web, scorpion
blackbird, chick, chicken, cormorant, crow, dodo, dove, duck, eagle, flamingo, goose, hatching chick, ostrich, parrot, peacock, penguin,
  pigeon, puffin, rooster, seagull, swan, turkey, empty nest, phoenix, rubber duck, bat, roast turkey, egg
whale, orca, dolphin, shark, seal, tropical fish, pufferfish
octopus, squid
crab, crawfish, shrimp, lobster, fried shrimp
beer, cocktail, coffee, tea, milk, lemonade, sake, whisky, bubble tea, soda cup, juice glass, juice box, soda can, tropical drink,
  teapot
baby bottle, champagne bottle, wine bottle, lotion bottle, flask, jar, amphora, urn, spray can
sword, swords, katana, dagger, knife
hammer, mallet, axe, wrench
gift, open box, takeout box, bento box, ballot box, treasure chest, toolbox, mailbox, postbox
handbag, purse, briefcase, suitcase, backpack, shopping bags, money bag
chair, office chair, couch, bed, wheelchair
painting, picture frame, mirror, artist palette
gold medal, silver medal, bronze medal, military medal, sports medal, coin, trophy
baguette, bagel, toast, croissant, flatbread, pretzel, doughnut
sandwich, hamburger, burrito, taco, pita sandwich, falafel, hot dog, corn dog
birthday cake, cupcake, muffin, pie, pudding, mooncake, waffle, pancakes, chocolate bar, cookie, fortune cookie, rice cracker
noodle soup, curry, stew pot, cereal bowl, fondue, paella, spaghetti, lasagna
rice ball, dumpling, sushi, dango, falafel
ice cream, sundae, shaved ice, lollipop
boiled egg, fried egg, egg
steak, sausage, drumstick, skewer, roast turkey, bacon
candy, lollipop, candy apple
lemon, lemon slice, lime, lime slice, orange, orange slice
apple, apple core, candy apple, plum, pear, mango, kiwi
blueberries, cherries, grapes, olive, plum
melon, watermelon
beans, peas, peanuts, chestnut
bell pepper, chili pepper
carrot, radish, turnip, potato, sweet potato, onion, garlic, ginger, pumpkin, avocado, eggplant, cucumber
baseball, basketball, bowling ball, football, rugby ball, soccer ball, softball, volleyball, beach ball, billiard ball, crystal ball,
  disco ball
baseball bat, cricket bat, hockey stick, tennis racket, badminton racket, ping pong
skateboard, surfboard, skis, sled, ice skate
notebook, notepad, newspaper, scroll, clipboard, love letter, receipt, bookmark, file folder, sheet music, calendar, bar chart, line
  chart, ticket
pen, pencil, fountain pen, nib, crayon, paintbrush, ruler, set square
banknote, credit card, id card, joker card, red envelope, money bag, flying money
castle, church, mosque, synagogue, temple, hotel, factory, stadium, lighthouse, office building, hut, igloo, tent, circus tent, shrine
  gate
crescent moon, full moon, half moon, planet, globe, world map
sun, sunset, comet, shooting star, night sky, star of David, throwing star
rain cloud, snow cloud, storm cloud, snowflake, snowman, tornado, lightning bolt
mountain, volcano, desert, island, beach
fireworks, firecracker, sparkler, bomb
daffodil, daisy, geranium, hibiscus, hyacinth, lotus, magnolia, rose, sunflower, tulip, cherry blossom, bouquet, fern, shamrock, clover
Christmas tree, palm tree, pine tree, cactus
heart, broken heart, heart with arrow, human heart
candle, lantern, oil lamp, paper lantern, flashlight
camera, movie camera, video camera, film projector
bucket, barrel, oil drum, trash can, basket
broom, rake, shovel, trowel, scrub brush, toothbrush
rocket, space shuttle, flying saucer, satellite, airplane
microscope, telescope, binoculars, magnifying glass
bow, bow tie, tie, ribbon
boxing glove, gloves, mitten, baseball glove
padlock, open padlock
key, old key
chess bishop, chess king, chess knight, chess pawn, chess queen, chess rook
dolls, nesting doll, devil, ghost, robot
atom, biohazard sign, radiation sign, recycling symbol, no smoking sign, warning sign, stop sign, road barrier
"""
_LOOK_ALIKE_NAMES = tuple(frozenset(" ".join(group.split()).split(", ")) for group in re.split(r"\n(?! )", _LOOK_ALIKE_LIST.strip("\n")))


@functools.cache
def _vocabulary() -> dict[str, tuple[Thing, ...]]:
    """Things by category, and under the empty one all that may be claimed absent. Seen names only: others are held out, also from text."""
    bank = sprite_bank()
    things = [bank.things[name] for name in bank.names("seen")]
    table: dict[str, tuple[Thing, ...]] = {}
    for thing in things:
        # A number or word that is not there is only asked for beside another, and so is a shape.
        if thing.category in PAINTED_CATEGORIES or thing.name not in _PARTS_AND_KINDS:
            table[thing.category] = (*table.get(thing.category, ()), thing)
    table[""] = tuple(thing for thing in things if thing.category not in PAINTED_CATEGORIES and thing.name not in _PARTS_AND_KINDS)
    return table


@functools.cache
def _categories() -> dict[str, str]:
    bank = sprite_bank()
    return {name: bank.things[name].category for name in bank.names("seen")}


def is_one_name(words: str) -> bool:
    """Whether several words are one name although they begin with a color: "orange slice"."""
    return words in _categories()


@functools.lru_cache(maxsize=4096)
def _words(name: str) -> frozenset[str]:
    words = re.split(r"[ -]", name.lower())
    return frozenset(words) | {word.rstrip("s") for word in words}


def may_be_called(shown: str, name: str) -> bool:
    """Whether somebody could find `name` in a picture of `shown`: then its absence is not to be claimed."""
    categories = _categories()
    category = categories.get(name)
    if category in ("number", "word"):
        return shown == name
    if shown in name or name in shown or not _words(shown).isdisjoint(_words(name)):
        return True
    if category in _PEOPLE and categories.get(shown) in _PEOPLE:
        return True
    return any(shown in group and name in group for group in _LOOK_ALIKE_NAMES)


def absent_thing(rng: random.Random, shown: Sequence[str]) -> Thing | None:
    """Something that none of the `shown` names could be taken for, half of the time of the category of one of them.

    A hunch must not be enough to say no. None where chance offers nothing.
    """
    vocabulary = _vocabulary()
    like = _categories().get(shown[int(rng.random() * len(shown))], "")
    near = vocabulary.get(like, ()) if like in PAINTED_CATEGORIES or rng.random() < 0.5 else ()
    for things in (near, vocabulary[""]):
        for _ in range(12 if things else 0):
            thing = things[int(rng.random() * len(things))]
            if not any(may_be_called(name, thing.name) for name in shown):
                return thing
    return None
