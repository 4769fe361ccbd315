"""The only room that touches the inside of transformers, through its public extension points."""
