"""`hiernas explain`: a genotype for people."""

from pathlib import Path

from pipeline.config import parse_recipe
from pipeline.errors import ConfigError
from pipeline.words import text_genotype
from search.cost import cost
from search.genotype import Genotype
from search.graph import Kind, Model, Unbuildable, assemble
from search.space import SPACES


def explain(text: str, space_name: str, recipe_name: str, draw: str | None) -> str:
    """Matrices, edges, and the cost of its network on 32×32 colour images of 10 classes; ConfigError names what is wrong."""
    from pipeline.drawing import draw_genotype

    if space_name not in SPACES:
        raise ConfigError(f"--space {space_name!r} is unknown; known: {', '.join(SPACES)}")
    space = SPACES[space_name]
    try:
        genotype = space.check(Genotype.from_text(text))
    except ValueError as error:
        raise ConfigError(f"--genotype: {error}") from error
    recipe = parse_recipe(recipe_name, "--recipe")
    model = Model(recipe.stem, recipe.width, recipe.cells, channels=3, size=32, classes=10)
    lines = [text_genotype(space, genotype), ""]
    try:
        graph = assemble(space, genotype, model)
    except Unbuildable as error:
        lines.append(f"unbuildable: {error}")
    else:
        found = cost(graph, recipe.batch)
        convolutions = sum("conv" in op.kind.value or op.kind in (Kind.DEPTHWISE_3X3, Kind.SEPARABLE_3X3) for op in graph.operations)
        lines += [
            f"network      {len(graph.operations)} operations, {convolutions} of them convolutions (recipe {recipe.name}, 3×32×32, 10 classes)",
            f"parameters   {found.parameters:,}",
            f"multiply-adds {found.multiply_adds:,} an image",
            f"memory       {found.memory_bytes / 1024**3:.2f} GiB predicted for a training step of {recipe.batch}",
            f"digest       {graph.digest}",
        ]
    if draw is not None:
        if Path(draw).suffix not in (".png", ".svg"):
            raise ConfigError(f"--draw {draw!r}: expected a file that ends in .png or .svg")
        draw_genotype(space, genotype).savefig(draw, dpi=150)
        lines.append(f"drawing      {draw}")
    return "\n".join(lines)
