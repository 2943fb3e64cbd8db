from dspy import Type

class Citations(Type):
    class Citation(Type): ...
