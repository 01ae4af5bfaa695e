mod architecture;
mod ledger;
mod model;
mod support;
