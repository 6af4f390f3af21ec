"""`vistune serve`: models as an OpenAI-compatible server. Loads them, hands them to the room that serves, and wires nothing else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from vistune import cli_model
from vistune.cli_model import BaseOption, DeviceOption, DTypeOption, TemplateOption, TowerOption, WeightsOption
from vistune.errors import UsageError, optional_import

ModelsArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[NAME=]MODEL...", help="`assistant` (the bundled one), a folder, a hub name, or http://host/v1[#MODEL] of another server."
    ),
]
AdapterOption = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME[@BASE]=FOLDER", help="An adapter over the first model or the one called BASE; may be repeated."),
]
KeyFromOption = Annotated[
    list[str] | None, typer.Option(metavar="NAME=VARIABLE", help="Environment variable with the key of the other server behind NAME.")
]


def serve(
    models: ModelsArgument = None,
    adapter: AdapterOption = None,
    key_from: KeyFromOption = None,
    host: Annotated[str, typer.Option(help="Address to listen at; one that others can reach needs a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at; 0 takes a free one.")] = 8000,
    name: Annotated[
        list[str] | None, typer.Option(help="What clients call the only model; may be repeated. Default: as it is named.")
    ] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="File with one key a line; VISTUNE_API_KEY works too, commas between.")] = None,
    allow_host: Annotated[list[str] | None, typer.Option(help="A name in the Host header to answer to besides; may be repeated.")] = None,
    allow_origin: Annotated[list[str] | None, typer.Option(help="Place of a page that may ask from a browser; may be repeated.")] = None,
    max_queue: Annotated[int, typer.Option(min=0, help="Requests that may wait for their turn; more get 429.")] = 64,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest reply that a request may ask for, in tokens.")] = 4096,
    max_images: Annotated[int, typer.Option(min=0, help="Pictures in one request, at most.")] = 16,
    max_body: Annotated[int, typer.Option(min=1, max=1024, metavar="MIB", help="Largest request, in MiB.")] = 32,
    fetch_images: Annotated[
        bool, typer.Option("--fetch-images", help="Fetch pictures by http(s) address, from public hosts only.")
    ] = False,
    fetch_from: Annotated[
        list[str] | None, typer.Option(metavar="HOST", help="Only from HOST, or .HOST for all below; may be repeated.")
    ] = None,
    media_path: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Folder whose pictures clients may name as file://...")] = None,
    grace: Annotated[float, typer.Option(min=0, metavar="SECONDS", help="On shutdown, how long replies may take to finish.")] = 30.0,
    page: Annotated[bool, typer.Option("--page/--no-page", help="Serve the web chat at / as well.")] = True,
    deterministic: Annotated[bool, typer.Option("--deterministic", help="Same bits whatever else is being answered; slower.")] = False,
    base: BaseOption = None,
    vision_tower: TowerOption = None,
    template: TemplateOption = None,
    dtype: DTypeOption = "auto",
    weights: WeightsOption = "full",
    device: DeviceOption = "auto",
) -> None:
    """Serve models to the browser, at http://127.0.0.1:8000/, and to OpenAI's clients, at http://127.0.0.1:8000/v1.

    Needs pip install 'vistune[serve]'. Only this machine reaches it unless --host says otherwise, and then a key is needed.
    """
    for package in ("fastapi", "uvicorn", "prometheus_client"):
        optional_import(package, extra="serve")
    from vistune.serve import server
    from vistune.serve.api import Settings
    from vistune.serve.fetch import Fetcher, FetchPolicy
    from vistune.serve.keys import KEY_VARIABLE, read_keys
    from vistune.serve.messages import PictureSources
    from vistune.serve.roster import read_roster
    from vistune.serve.schemas import RequestLimits

    roster = read_roster(models or ["assistant"], adapter or (), names=name or (), keys_from=key_from or ())
    if fetch_from and not fetch_images:
        raise UsageError("--fetch-from says where pictures may be fetched from; give --fetch-images too, so that any are.")
    if media_path is not None and not media_path.is_dir():
        raise UsageError(f"There is no folder {str(media_path)!r}; --media-path takes the folder that holds the pictures.")
    web = Fetcher(FetchPolicy(hosts=tuple(fetch_from or ()), total_bytes=max_body << 20)) if fetch_images else None
    keys = read_keys(api_key_file, os.environ.pop(KEY_VARIABLE, None))  # out of the environment, which children would inherit
    settings = Settings(
        keys=keys,
        hosts=server.allowed_hosts(host, keys, allow_host or ()),
        origins=server.allowed_origins(allow_origin or ()),
        limits=RequestLimits(
            body_bytes=max_body << 20, max_tokens=max_tokens, images=max_images, sources=PictureSources(web=web, folder=media_path)
        ),
        max_queue=max_queue,
        page=page,
        lineage=roster.lineage,
    )

    def announce(address: str) -> None:
        chat = f"Chat in the browser at {address.removesuffix('v1')} · " if page else ""
        typer.echo(f"{chat}Serving {', '.join(roster.lineage)} at {address}{'' if keys else ', without a key'}. Ctrl-C ends it.", err=True)

    with cli_model.loaded_roster(
        roster, dtype, device, deterministic=deterministic, weights=weights, base=base, vision_tower=vision_tower, template=template
    ) as served:
        server.serve(served, settings, host=host, port=port, grace_seconds=grace, announce=announce)
