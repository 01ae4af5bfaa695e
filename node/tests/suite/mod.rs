mod architecture;
mod decoders;
mod ledger;
mod model;
mod support;
