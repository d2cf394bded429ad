"""A benchmark's chosen documents with lm-eval's own prompts, built once per worker.

lm-eval builds every prompt again at every evaluation, but a search evaluates the same documents
hundreds of times.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.task import Task

from mqasearch.score import Documents, TaskSpec
from mqasearch.tasks.documents import chosen, digest_of, document_hash, row_hashes
from mqasearch.tasks.offline import load_task

Loader = Callable[[str, int, int], Sequence[Task]]


@dataclass(frozen=True, slots=True, eq=False)
class PreparedDocument:
    """One document, ready to be put to a model.

    Attributes:
        task: lm-eval's task that the document belongs to; in a group, the member.
        document: the document as the task gives it.
        digest: ``document_hash``; in a group, it includes the member's name.
        instances: lm-eval's requests, in lm-eval's order.
    """

    task: Task
    document: Mapping[str, Any]
    digest: str
    instances: tuple[Instance, ...]


@dataclass(frozen=True, slots=True, eq=False)
class PreparedTask:
    """The chosen documents of one task or group, in the order in which they are scored.

    Attributes:
        name: lm-eval's name.
        version: lm-eval's version of the task; for a group, all versions of its members.
        documents: the chosen documents.
    """

    name: str
    version: str
    documents: tuple[PreparedDocument, ...]

    @property
    def digest(self) -> str:
        """Digest of the documents, in order."""
        return digest_of([document.digest for document in self.documents])

    def part(self, start: int, stop: int) -> "PreparedTask":
        """The documents from place ``start`` on and before place ``stop``."""
        return PreparedTask(self.name, self.version, self.documents[start:stop])

    @property
    def instances(self) -> list[Instance]:
        """All requests, document by document."""
        return [instance for document in self.documents for instance in document.instances]


class LoadedTask:
    """A task, or all members of a group, with the hash of every document.

    A group counts as one benchmark: its documents are pooled before they are ordered, so that each
    member has a weight proportional to its size and a limit is a sample of the whole group. Two
    members may hold the same row. So the hash of a document includes its member, but its split
    depends on the row alone.
    """

    def __init__(
        self, name: str, num_fewshot: int = 0, seed: int = 0, load: Loader = load_task
    ) -> None:
        self.name = name
        self.num_fewshot = num_fewshot
        self.seed = seed
        self.tasks = load(name, num_fewshot, seed)
        self.version = "+".join(sorted({str(task.VERSION) for task in self.tasks}))
        self._rows: list[tuple[Task, int, Any]] = []
        self._row_hashes: list[str] = []
        for task in self.tasks:
            documents = list(task.eval_docs)
            self._rows += [(task, row, document) for row, document in enumerate(documents)]
            self._row_hashes += row_hashes(task, documents)
        self._hashes = [
            document_hash([task.task_name, document] if len(self.tasks) > 1 else document)
            for task, _, document in self._rows
        ]
        self._prepared: dict[int, PreparedDocument] = {}
        self._chosen: dict[Documents, tuple[list[int], str]] = {}

    def digest(self, documents: Documents) -> str:
        """``PreparedTask.digest``, without building a prompt."""
        return self._choose(documents)[1]

    def prepare(self, documents: Documents) -> PreparedTask:
        """The chosen documents with their prompts; prompts that were built before are reused."""
        return PreparedTask(self.name, self.version, tuple(self.in_order(documents)))

    def in_order(self, documents: Documents) -> Iterator[PreparedDocument]:
        """The chosen documents one by one, each built when it is asked for."""
        for index in self._choose(documents)[0]:
            if index not in self._prepared:
                self._prepared[index] = self._build(index)
            yield self._prepared[index]

    def _choose(self, documents: Documents) -> tuple[list[int], str]:
        """Indices of the chosen documents, and their digest."""
        if documents not in self._chosen:
            indices = chosen(self._hashes, documents, self._row_hashes)
            self._chosen[documents] = indices, digest_of([self._hashes[i] for i in indices])
        return self._chosen[documents]

    def _build(self, index: int) -> PreparedDocument:
        """lm-eval's prompt and requests of one document.

        lm-eval draws the examples of all prompts of a run from one random stream, so that a prompt
        depends on which other documents are scored. Here each document has a stream of its own,
        seeded by the seed and the document's hash.
        """
        task, row, document = self._rows[index]
        digest = self._hashes[index]
        if self.num_fewshot:
            task.set_fewshot_seed(seed=int(digest[:8], 16) ^ self.seed)
        context = task.fewshot_context(
            document, num_fewshot=self.num_fewshot, gen_prefix=task.doc_to_prefix(document)
        )
        metadata = (task.task_name, row, task.get_config("repeats") or 1)
        built = task.construct_requests(doc=document, ctx=context, metadata=metadata)
        instances = tuple(built) if isinstance(built, list) else (built,)
        return PreparedDocument(task, document, digest, instances)


class TaskLibrary:
    """Every task that a worker has used, loaded once."""

    def __init__(self, load: Loader = load_task) -> None:
        """
        Args:
            load: takes a name, the number of examples in the prompt and a seed; returns lm-eval's
                task, or the members of a group.
        """
        self._load = load
        self._loaded: dict[tuple[str, int, int], LoadedTask] = {}

    def task(self, spec: TaskSpec, documents: Documents) -> LoadedTask:
        """The task with the examples in its prompts seeded by ``documents.seed``.

        Raises:
            UnknownNameError: lm-eval has no such task.
        """
        key = (spec.name, spec.num_fewshot, documents.seed)
        if key not in self._loaded:
            self._loaded[key] = LoadedTask(*key, self._load)
        return self._loaded[key]
