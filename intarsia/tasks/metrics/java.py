"""METEOR, SPICE and the tokenizer by their authors' own jars, for who has them: `pip install 'intarsia[captions]'` and a Java.

METEOR 1.5 matches synonyms and paraphrases by a table of 61 MB: nothing else is equal to it (NLTK's METEOR is another measure). SPICE parses sentences with
CoreNLP 3.6.0, whose jars the user puts beside its own, in `lib/`: nothing is fetched here. Jars are looked for in the folder given, else in the installed
package pycocoevalcap. All files that are written are private and temporary.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from intarsia.errors import BadInput
from intarsia.tasks.metrics.captions import Score
from intarsia.tasks.metrics.folding import complete, mean
from intarsia.tasks.metrics.ptb import DROPPED

Key = TypeVar("Key", bound=int | str)

METEOR_JAR = "meteor/meteor-1.5.jar"
SPICE_JAR = "spice/spice-1.0.jar"
TOKENIZER_JAR = "tokenizer/stanford-corenlp-3.4.1.jar"
SPICE_NEEDS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")


def find_jar(jar: str, folder: Path | None = None) -> Path:
    """Where a jar lies: in the folder (laid out as pycocoevalcap, or the jars alone), else in the installed package.

    Raises:
        BadInput: there is no Java, no package, or no such file; names what is missing.
    """
    if shutil.which("java") is None:
        raise BadInput(f"{Path(jar).name} needs Java: no program 'java' is on the path")
    if folder is None:
        package = importlib.util.find_spec("pycocoevalcap")
        if package is None or not package.submodule_search_locations:
            raise BadInput(f"{Path(jar).name}: pip install 'intarsia[captions]', or name the folder with the jars")
        folder = Path(next(iter(package.submodule_search_locations)))
    for place in (folder / jar, folder / Path(jar).name):
        if place.is_file():
            return place
    raise BadInput(f"{folder}: has no {jar}")


def _run(command: Sequence[str], cwd: Path, given: str | None = None) -> str:
    """What a program writes.

    Raises:
        BadInput: it fails; tells the last line it complained with.
    """
    done = subprocess.run(command, cwd=cwd, input=given, capture_output=True, text=True, encoding="utf-8", check=False)
    if done.returncode:
        complaints = done.stderr.strip().splitlines() or ["without a word"]
        raise BadInput(f"{' '.join(command[:4])}: failed with {done.returncode}: {complaints[-1]}")
    return done.stdout


def tokenise(captions: Mapping[Key, Sequence[str]], folder: Path | None = None) -> dict[Key, list[str]]:
    """Captions by the original tokenizer, punctuation dropped: what `ptb.tokenise_all` stands in for.

    A last line is added and taken away again, since the original cuts a final 'll there.

    Raises:
        BadInput: see `find_jar`; or it returned another number of lines.
    """
    jar = find_jar(TOKENIZER_JAR, folder)
    lines = [" ".join(x.split("\n")) for mine in captions.values() for x in mine]
    with tempfile.TemporaryDirectory() as private:
        file = Path(private) / "captions.txt"
        file.write_text("\n".join([*lines, "end"]), encoding="utf-8")
        command = ["java", "-Dfile.encoding=UTF-8", "-Dstdout.encoding=UTF-8", "-cp", str(jar)]
        command += ["edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase", str(file)]
        found = _run(command, Path(private)).split("\n")[: len(lines)]
    if len(found) != len(lines):
        raise BadInput(f"{jar}: {len(lines)} captions came back as {len(found)} lines")
    kept = iter(" ".join(x for x in line.rstrip().split(" ") if x not in DROPPED) for line in found)
    return {key: [next(kept) for _ in mine] for key, mine in captions.items()}


def meteor(hypotheses: Mapping[Key, str], references: Mapping[Key, Sequence[str]], folder: Path | None = None) -> Score:
    """METEOR 1.5 of tokenised captions, fractions. The corpus score comes from summed statistics and is not the mean of the images'.

    Raises:
        BadInput: an image lacks one side; see `find_jar`; or the jar answered with something else.
    """
    keys = complete(references, hypotheses, "image")
    jar = find_jar(METEOR_JAR, folder)
    command = ["java", "-Dfile.encoding=UTF-8", "-Xmx2G", "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"]

    def plain(caption: str) -> str:
        return " ".join(caption.replace("|||", "").split())

    with tempfile.TemporaryFile("w+", encoding="utf-8") as complaints, tempfile.TemporaryDirectory() as private:
        pipe = subprocess.PIPE
        with subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=complaints, cwd=private, encoding="utf-8"
        ) as jvm:

            def answer() -> str:
                assert jvm.stdout is not None
                found = jvm.stdout.readline().strip()
                if not found:
                    complaints.seek(0)
                    raise BadInput(f"{jar}: stopped: {(complaints.read().strip().splitlines() or ['no word'])[-1]}")
                return found

            def ask(*fields: str) -> None:
                assert jvm.stdin is not None
                with contextlib.suppress(BrokenPipeError):  # it has stopped: the answer tells
                    print(" ||| ".join(fields), file=jvm.stdin, flush=True)

            statistics = []
            for key in keys:
                ask("SCORE", *map(plain, references[key]), plain(hypotheses[key]))
                statistics.append(answer())
            ask("EVAL", *statistics)
            each = [float(answer()) for _ in keys]
            corpus = float(answer())
    return Score(corpus, tuple(each))


def spice(hypotheses: Mapping[Key, str], references: Mapping[Key, Sequence[str]], folder: Path | None = None) -> Score:
    """SPICE: F of scene graph tuples, the mean over images. Anderson et al. 2016.

    Raises:
        BadInput: an image lacks one side; see `find_jar`; CoreNLP 3.6.0's jars are not in `lib/` beside SPICE's own.
    """
    keys = complete(references, hypotheses, "image")
    jar = find_jar(SPICE_JAR, folder)
    missing = [x for x in SPICE_NEEDS if not (jar.parent / "lib" / x).is_file()]
    if missing:
        raise BadInput(f"SPICE needs CoreNLP 3.6.0: put {' and '.join(missing)} into {jar.parent / 'lib'}")
    with tempfile.TemporaryDirectory() as private:
        given, out, cache = (Path(private) / x for x in ("in.json", "out.json", "cache"))
        cache.mkdir()
        asked = [{"image_id": i, "test": hypotheses[x], "refs": list(references[x])} for i, x in enumerate(keys)]
        given.write_text(json.dumps(asked), encoding="utf-8")
        parse = ["java", "-Dfile.encoding=UTF-8", "-Xmx8G", "-jar", str(jar), str(given), "-cache", str(cache)]
        _run([*parse, "-out", str(out), "-subset", "-silent"], jar.parent)
        found = {int(x["image_id"]): float(x["scores"]["All"]["f"]) for x in json.loads(out.read_text("utf-8"))}
    scores = [found[i] for i in range(len(keys))]
    return Score(mean(scores), tuple(scores))
