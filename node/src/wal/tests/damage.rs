//! A crash at every durable operation of a fixed workload, and damage of every kind to its files.

use super::*;
