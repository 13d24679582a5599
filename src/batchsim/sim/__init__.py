"""When things happen: SimPy processes that exchange requests, batches and iterations through Stores."""
