//! The lazy JSON body.
