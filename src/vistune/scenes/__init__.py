"""Annotated scenes, drawn from a seed: data and a benchmark that need no download.

`bank` holds the sprites, `draw` decides and paints scenes, `questions` asks about them with answers true by construction, `write` puts
pictures, annotations and LLaVA JSON into a folder. Knows no torch and no model.
"""

from vistune.scenes.bank import Split, Sprite, SpriteBank, Thing, sprite_bank
from vistune.scenes.draw import COLOURS, PLACES, Background, Scene, SceneObject, SceneSpec, plan_scene, render_scene

__all__ = [
    "COLOURS",
    "PLACES",
    "Background",
    "Scene",
    "SceneObject",
    "SceneSpec",
    "Split",
    "Sprite",
    "SpriteBank",
    "Thing",
    "plan_scene",
    "render_scene",
    "sprite_bank",
]
